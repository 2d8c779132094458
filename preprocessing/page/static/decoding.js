// From the page's own bytes to volumes: inflating, label maps, and the inverse of page/wavelet.py.

const LIFTING = [-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971];
const SCALE = 1.149604398860241;
const LEVELS = 5;
const SHORTEST = 8;
const LONGEST = 255;

/** Returns the bytes of one block of the page; null where there is no such block. */
async function blockBytes(id) {
  const element = byId(id);
  if (!element) return null;
  const text = atob(element.textContent);
  const packed = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) packed[i] = text.charCodeAt(i);
  const stream = new Blob([packed]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
}

/** Returns label values [z, y, x] from their changes from slice to slice; in place. */
function decodeLabels(bytes, shape) {
  const plane = shape[1] * shape[2];
  for (let i = plane; i < bytes.length; i++) bytes[i] += bytes[i - plane];
  return bytes;
}

/** Returns intensities, Float32Array [z, y, x]. */
function decodeImage(bytes, volume) {
  const [depth, height, width] = volume.shape;
  const count = depth * height * width;
  const large = new DataView(bytes.buffer, bytes.byteOffset + count);
  const values = new Float32Array(count);
  for (let i = 0, next = 0; i < count; i++) {
    let folded = bytes[i];
    if (folded === LONGEST) {
      folded = large.getUint32(next, true);
      next += 4;
    }
    values[i] = ((folded >>> 1) ^ -(folded & 1)) * volume.step;
  }
  inverseWavelet(values, volume.shape);
  const [low, high] = volume.knees;
  for (let i = 0; i < count; i++) {
    const value = values[i];
    if (value < low) values[i] = low + (value - low) / volume.outer_slope;
    else if (value > high) values[i] = high + (value - high) / volume.outer_slope;
  }
  return values;
}

/** Turns coefficients into the array that they came from; in place. */
function inverseWavelet(values, shape) {
  const levels = [];
  let sizes = [...shape];
  for (let level = 0; level < LEVELS; level++) {
    const axes = [0, 1, 2].filter((axis) => sizes[axis] >= SHORTEST);
    if (!axes.length) break;
    levels.push([sizes, axes]);
    sizes = sizes.map((size, axis) => (axes.includes(axis) ? (size + 1) >> 1 : size));
  }
  const work = new Float32Array(values.length);
  for (const [corner, axes] of levels.reverse()) {
    for (const axis of axes.reverse()) inverseAlong(values, shape, corner, axis, work);
  }
}

/** Undoes one level along one axis in the corner of the array that the level transformed. */
function inverseAlong(values, shape, corner, axis, work) {
  const [depth, height, width] = corner;
  const rowStart = (z, y) => (z * shape[1] + y) * shape[2];
  const half = (corner[axis] + 1) >> 1;
  const place = (line) => (line < half ? 2 * line : 2 * (line - half) + 1);
  if (axis === 2) {
    for (let z = 0; z < depth; z++) {
      for (let y = 0; y < height; y++) {
        const start = rowStart(z, y);
        for (let x = 0; x < width; x++) work[place(x)] = values[start + x];
        lift(work, width, 1);
        for (let x = 0; x < width; x++) values[start + x] = work[x];
      }
    }
    return;
  }
  // Whole rows are the elements of a line: of one slice along y, of all of them along z.
  const [groups, rows] = axis === 1 ? [depth, 1] : [1, height];
  for (let group = 0; group < groups; group++) {
    const start = (line, row) => (axis === 1 ? rowStart(group, line) : rowStart(line, row));
    for (let line = 0; line < corner[axis]; line++) {
      for (let row = 0; row < rows; row++) {
        const source = start(line, row);
        work.set(values.subarray(source, source + width), (place(line) * rows + row) * width);
      }
    }
    lift(work, corner[axis], rows * width);
    for (let line = 0; line < corner[axis]; line++) {
      for (let row = 0; row < rows; row++) {
        const source = (line * rows + row) * width;
        values.set(work.subarray(source, source + width), start(line, row));
      }
    }
  }
}

/** Undoes the lifting steps over `size` lines of `across` values each; in place. */
function lift(work, size, across) {
  for (let line = 0; line < size; line++) {
    const factor = line % 2 ? SCALE : 1 / SCALE;
    for (let i = line * across; i < (line + 1) * across; i++) work[i] *= factor;
  }
  for (let number = LIFTING.length - 1; number >= 0; number--) {
    const weight = LIFTING[number];
    for (let line = 1 - (number % 2); line < size; line += 2) {
      const own = line * across;
      const before = (line > 0 ? line - 1 : line + 1) * across;
      const after = (line + 1 < size ? line + 1 : line - 1) * across;
      for (let i = 0; i < across; i++) {
        work[own + i] -= weight * (work[before + i] + work[after + i]);
      }
    }
  }
}

/** Returns a case's image, reference and prediction; null for what it lacks. */
async function decodeCase(index, volume) {
  const parts = ["image", "reference", "prediction"];
  const bytes = await Promise.all(parts.map((part) => blockBytes(`volume-${index}-${part}`)));
  return {
    ...volume,
    image: bytes[0] && decodeImage(bytes[0], volume),
    reference: bytes[1] && decodeLabels(bytes[1], volume.shape),
    prediction: bytes[2] && decodeLabels(bytes[2], volume.shape),
  };
}
