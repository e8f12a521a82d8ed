// What the recipes use of Node.js.

declare module "node:fs" {
  import { Readable } from "node:stream";
  export function createReadStream(path: string): Readable;
  export function createWriteStream(path: string): object;
}

declare module "node:stream" {
  export class Readable {
    static fromWeb(stream: ReadableStream<Uint8Array>): Readable;
    static toWeb(stream: Readable): ReadableStream<Uint8Array>;
  }
}

declare module "node:stream/promises" {
  export function pipeline(...streams: object[]): Promise<void>;
}
