// Compiled, never run: the declarations accept what they should.
import { CorruptImageError, DisketteError, type Extent, type ImageInfo, type MapPage, MAP_COLUMNS, type Source, open } from "diskette";

export async function use(file: File, handle: FileSystemFileHandle): Promise<number> {
  await using image = await open(file, {
    signal: AbortSignal.timeout(1000),
    onOpen: ({ name, role, format, from }) => (role === "backing" && format !== from && name === "base" ? new Uint8Array(512) : null),
  });
  const info: ImageInfo = image.info();
  const extents: Extent[] = await image.map({ offset: 0n, length: 512 });
  const pages: MapPage[] = [];
  for await (const page of image.mapPages()) pages.push(page);
  try {
    await image.readInto(0, new Uint8Array(512), { signal: AbortSignal.timeout(1000) });
  } catch (error) {
    if (error instanceof CorruptImageError) return error.offset ?? 0;
    if (error instanceof DisketteError && error.kind === "denied") return 1;
  }
  const copy: Blob = new Blob([await image.read(0, 512)]);
  await image.stream({ length: 512 }).pipeTo(new WritableStream<Uint8Array>());
  const source: Source = { size: 512, read: (offset, length) => new Uint8Array(offset + length) };
  for (const input of [handle, source, new ArrayBuffer(1), new DataView(new ArrayBuffer(1)), "https://example.org/a.qcow2", new URL("file:///a")]) {
    await (await open(input)).close();
  }
  // @ts-expect-error a text is no offset
  await image.read("0", 512);
  // @ts-expect-error a number is no image
  await open(5);
  return info.chain.length + extents.length + copy.size + (pages[0]?.columns.length ?? 0) / MAP_COLUMNS;
}
