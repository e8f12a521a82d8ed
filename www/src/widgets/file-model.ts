// What is where in a file.

import type { RegionKind, RegionPage } from "diskette/inspector";

import { offset, size } from "../format";
import type { Picture } from "./map-view";
import { Runs } from "./runs";

/** Kinds of regions in the order in which the more telling one is shown, with what they are for people. */
const MEANING: Record<RegionKind, string> = {
  contested: "things of different kinds refer to it, so at least one of them is wrong",
  header: "the header of the image",
  leaked: "nothing refers to it, but it is counted as used",
  unknown: "it is counted as used, and what may refer to it cannot be read",
  "l1-table": "says where the L2 tables are",
  "l2-table": "says where clusters of the disk are",
  "refcount-table": "says where the refcount blocks are",
  "refcount-block": "counts the users of each cluster",
  "snapshot-table": "lists the snapshots",
  "bitmap-directory": "lists the bitmaps",
  "bitmap-table": "says where the bits of a bitmap are",
  "bitmap-data": "bits of a bitmap",
  encryption: "header and keys of the encryption",
  compressed: "clusters of the disk, compressed",
  "snapshot-data": "clusters that only snapshots have",
  data: "clusters of the disk",
  free: "nothing is stored here",
};

const KINDS = Object.keys(MEANING) as RegionKind[];

export class FileModel extends Runs implements Picture {
  readonly kinds = KINDS.map((name) => ({ name, meaning: MEANING[name] }));

  constructor(total: number) {
    super(total, KINDS.length, 3);
  }

  append({ columns, kinds, end }: RegionPage): void {
    const order = kinds.map((name) => KINDS.indexOf(name));
    for (let at = 2; at < columns.length; at += 3) columns[at] = order[columns[at] as number] ?? 0;
    this.add(columns, end);
  }

  protected kindAt(at: number): number {
    return this.columns[at + 2] as number;
  }

  describe(at: number): string | undefined {
    const run = this.runAt(at);
    const kind = run && this.kinds[run.kind];
    return kind && `${offset(run.start)} to ${offset(run.start + run.length - 1)}, ${size(run.length)}: ${kind.name.replaceAll("-", " ")}, ${kind.meaning}.`;
  }
}
