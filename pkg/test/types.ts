// Compiled, never run: the declarations accept what they should.
import { CorruptImageError, DisketteError, type Extent, type ImageInfo, type MapPage, MAP_COLUMNS, type Source, open } from "diskette";
import { ImageDisk } from "diskette/disk";
import { Memory, type TargetObject, type WritableSyncHandle, convert, create, fromStream, open as openFull } from "diskette/full";
import { Pool, open as openInWorker } from "diskette/worker";

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

export async function change(handle: FileSystemFileHandle, sync: WritableSyncHandle, bytes: Uint8Array): Promise<number> {
  const object: TargetObject = { size: 0n, read: (offset, length) => new Uint8Array(offset + length), write: (offset, part) => void (offset + part.length) };
  for (const target of [handle, sync, new Memory(bytes), "path", new URL("file:///path"), object]) {
    await using image = await openFull(target, { writable: true, passphrase: "x", budgets: { chainDepth: 1 }, onOpen: () => null });
    await image.write(0n, bytes, { compressed: true, signal: AbortSignal.timeout(1) });
    await image.zero(0, 512, { unmap: false, signal: AbortSignal.timeout(1) });
    await image.discard(0, 512, { signal: AbortSignal.timeout(1) });
    await image.flush({ signal: AbortSignal.timeout(1) });
    await image.readFile(0, 512, { file: 0, signal: AbortSignal.timeout(1) });
    await image.resize(5n, { shrink: true });
    const { leaksFixed } = await image.check({ repair: "all" });
    await image.setBacking("base.qcow2", "qcow2");
    await image.setBacking(null);
    const [dirty = 0]: Float64Array = await image.readBitmap("name", { signal: AbortSignal.timeout(1) });
    await image.zero(dirty, 0);
    await image.snapshots.create("name", { date: new Date() });
    await new ImageDisk(image).discard(0, leaksFixed);
    await image.abandon();
  }
  const made = await create(new Memory(), { format: "luks", size: 1, passphrase: "x" });
  await convert(made, handle, { compressed: true, onProgress: ({ done, total }) => void (done / total) });
  await convert(await open(bytes), sync, { format: "raw" });
  await fromStream(made.stream(), handle, { size: 5, format: "raw" });
  await new ImageDisk(await open(bytes)).getCapacity();
  await using pool = new Pool({ size: 1 });
  await using remote = await pool.open(handle, { writable: true, onOpen: async () => handle });
  for (const options of [{ signal: AbortSignal.timeout(1) }, undefined]) {
    await remote.write(0, bytes, { compressed: true, ...options });
    await remote.zero(0, 512, options);
    await remote.discard(0, 512, options);
    await remote.flush(options);
    await remote.readFile(0, 512, options);
    await remote.readBitmap("name", options);
  }
  // @ts-expect-error a Blob never changes
  await openFull(new Blob(), { writable: true });
  // @ts-expect-error a new image has a size
  await create(handle, { format: "raw" });
  // @ts-expect-error the answer is a promise there
  (await openInWorker("a")).info().format;
  return (await remote.info()).virtualSize + remote.size;
}
