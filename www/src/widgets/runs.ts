// Runs of bytes of one kind, in order, as columns of numbers: a large disk has millions.

export interface Cells {
  readonly kind: Int8Array;
  readonly share: Float32Array;
  /** Whether all runs that are there are counted. */
  readonly done: boolean;
}

interface Counted extends Cells {
  done: boolean;
  start: number;
  span: number;
  /** Index of the first column of the run that is counted next, or -1. */
  next: number;
}

/** Ranges that are counted at the same time: a picture shows the whole and a part. */
const MAX_COUNTED = 3;
/** Runs that are counted at a time, so that a frame is not late for them. */
const MAX_AT_ONCE = 150_000;

/** A run: its columns begin with start and length. */
export abstract class Runs {
  readonly total: number;
  /** Offset up to which the runs reach. */
  end = 0;
  count = 0;
  /** Bytes of each kind. */
  readonly bytes: number[];
  protected columns: Float64Array;
  readonly #width: number;
  readonly #counted: Counted[] = [];

  constructor(total: number, kinds: number, width: number) {
    this.total = total;
    this.bytes = new Array<number>(kinds).fill(0);
    this.#width = width;
    this.columns = new Float64Array(width * 64);
  }

  /** The kind of the run whose columns begin at an index. Of two kinds in one place of a picture the lower is shown. */
  protected abstract kindAt(index: number): number;

  /** Takes runs that follow those that are there; gives the index of their first column. */
  protected add(columns: Float64Array, end: number): number {
    const from = this.count * this.#width;
    const needed = from + columns.length;
    if (needed > this.columns.length) {
      const larger = new Float64Array(Math.max(needed, this.columns.length * 2));
      larger.set(this.columns.subarray(0, from));
      this.columns = larger;
    }
    this.columns.set(columns, from);
    this.count += columns.length / this.#width;
    this.end = end;
    for (let at = from; at < needed; at += this.#width) {
      const kind = this.kindAt(at);
      this.bytes[kind] = (this.bytes[kind] ?? 0) + (this.columns[at + 1] as number);
    }
    return from;
  }

  /** Index of the first column of the run that holds an offset, or of the last one before it. */
  protected indexAt(offset: number): number {
    let low = 0;
    let high = this.count - 1;
    while (low < high) {
      const middle = (low + high + 1) >> 1;
      if ((this.columns[middle * this.#width] as number) <= offset) low = middle;
      else high = middle - 1;
    }
    return low * this.#width;
  }

  /** Start, length and kind of the run that holds an offset. */
  runAt(offset: number): { start: number; length: number; kind: number } | undefined {
    if (this.count === 0) return undefined;
    const at = this.indexAt(offset);
    const [start, length] = [this.columns[at] as number, this.columns[at + 1] as number];
    return offset >= start && offset < start + length ? { start, length, kind: this.kindAt(at) } : undefined;
  }

  /**
   * For each of `cells` equal parts of a range: its most telling kind, so that a small allocation in a large disk is seen,
   * and that kind's share of the cell. Kind -1 is not known yet. What was counted for a range is kept, and only what came
   * since is added: pictures are drawn again and again while runs arrive. Of many runs a part is counted, and the next with
   * the next call.
   */
  cells(start: number, span: number, cells: number): Cells {
    const known = this.#counted.find((other) => other.start === start && other.span === span && other.kind.length === cells);
    const counted = known ?? { start, span, next: -1, done: true, kind: new Int8Array(cells).fill(-1), share: new Float32Array(cells) };
    // The one that was asked for last comes first, and the one that was not asked for longest goes.
    if (counted !== this.#counted[0]) {
      if (known) this.#counted.splice(this.#counted.indexOf(known), 1);
      this.#counted.unshift(counted);
      this.#counted.length = Math.min(this.#counted.length, MAX_COUNTED);
    }
    if (this.count === 0 || span <= 0) return counted;
    // This loop sees each of a million runs, so it has everything at hand.
    const { kind, share } = counted;
    const { columns } = this;
    const [width, all, perByte] = [this.#width, this.count * this.#width, cells / span];
    let at = counted.next < 0 ? this.indexAt(start) : counted.next;
    const end = Math.min(all, at + MAX_AT_ONCE * width);
    counted.done = end === all;
    for (; at < end; at += width) {
      const first = ((columns[at] as number) - start) * perByte;
      if (first >= cells) {
        counted.done = true;
        break;
      }
      const from = first < 0 ? 0 : first;
      const last = first + (columns[at + 1] as number) * perByte;
      const to = last > cells ? cells : last;
      const own = this.kindAt(at);
      for (let cell = Math.floor(from); cell < to; cell++) {
        const part = (to < cell + 1 ? to : cell + 1) - (from > cell ? from : cell);
        const shown = kind[cell] as number;
        if (shown === own) share[cell] = (share[cell] as number) + part;
        else if (shown < 0 || own < shown) {
          kind[cell] = own;
          share[cell] = part;
        }
      }
    }
    counted.next = at;
    return counted;
  }
}

/** Ranges that are marked on a picture, such as those that a bitmap holds dirty. */
export class Marks extends Runs {
  constructor(total: number) {
    super(total, 1, 2);
  }

  append(ranges: Float64Array): void {
    this.add(ranges, this.total);
  }

  protected kindAt(): number {
    return 0;
  }
}
