// Compiled, never run: the declarations of the inspector's entry accept what they should.
import { type InspectedFile, type Part, REGION_COLUMNS, type RegionKind, look, open } from "../inspector/index.js";

export async function use(file: File): Promise<number> {
  await using image = await open(file, { snapshot: "1", noBacking: true });
  const { total, parts } = await image.structure([0, 1], { from: 5, count: 10, signal: AbortSignal.timeout(1000) });
  const part: Part | undefined = parts[0];
  let sum = total + (part?.target?.offset ?? part?.guest?.start ?? part?.bits?.low ?? 0);
  for await (const { columns, kinds, end } of image.regions()) {
    const kind: RegionKind | undefined = kinds[columns[REGION_COLUMNS - 1] ?? 0];
    sum += kind === "leaked" ? end : 0;
  }
  const broken: InspectedFile = await look(file, { format: "qcow2" });
  sum += (await broken.structure()).total + (await broken.readFile(0, 512)).length;
  // @ts-expect-error there is no disk
  await broken.read(0, 512);
  await broken.close();
  return sum;
}
