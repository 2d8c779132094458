// Decodes the volumes of a page: WebP slices for images, deflated label maps.

/** Returns a case's image, reference and prediction; null for parts that it lacks. */
async function decodeCase(index, volume) {
  const bytes = (part) => blockBytes(`volume-${index}-${part}`);
  const [image, reference, prediction] = await Promise.all([
    decodeImage(bytes("image"), volume),
    inflate(bytes("reference")),
    inflate(bytes("prediction")),
  ]);
  return { ...volume, image, reference, prediction };
}

/** Returns the bytes of one block of the page; null if there is no such block. */
function blockBytes(id) {
  const element = byId(id);
  if (!element) return null;
  const text = atob(element.textContent);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

/** Returns label values, Uint8Array [z, y, x]. */
async function inflate(bytes) {
  if (!bytes) return null;
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Returns intensities, Float32Array [z, y, x]; the browser decodes the slices in parallel. */
async function decodeImage(bytes, { shape, slice_bytes: sizes, levels }) {
  if (!bytes) return null;
  const [depth, height, width] = shape;
  const values = new Float32Array(depth * height * width);
  const canvas = document.createElement("canvas");
  Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { willReadFrequently: true });
  let end = 0;
  const decodeSlice = async (size, z) => {
    end += size;
    const picture = new Blob([bytes.subarray(end - size, end)], { type: "image/webp" });
    const bitmap = await createImageBitmap(picture, { colorSpaceConversion: "none" });
    context.drawImage(bitmap, 0, 0);
    bitmap.close();
    const { data } = context.getImageData(0, 0, width, height);
    const start = z * height * width;
    for (let i = 0; i < height * width; i++) values[start + i] = levels[data[4 * i]];
  };
  await Promise.all(sizes.map(decodeSlice));
  return values;
}
