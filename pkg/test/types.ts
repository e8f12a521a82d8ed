// Compiled, never run: the declarations accept what they should.
import { CorruptImageError, type Extent, type ImageInfo, open } from "diskette";

export async function use(file: File): Promise<number> {
  const image = await open(file, { onOpen: ({ name }) => (name === "base" ? new Uint8Array(512) : null) });
  const info: ImageInfo = image.info();
  const extents: Extent[] = await image.map({ offset: 0n, length: 512 });
  try {
    await image.readInto(0, new Uint8Array(512), { signal: AbortSignal.timeout(1000) });
  } catch (error) {
    if (error instanceof CorruptImageError) return error.offset ?? 0;
  }
  // @ts-expect-error a text is no offset
  await image.read("0", 512);
  await image.close();
  return info.chain.length + extents.length;
}
