// Planes through a volume in radiological convention: patient's left at the right, head or front up.
// Axes 0, 1, 2 are z, y, x of the page's grid.

const OPPOSITE = { R: "L", L: "R", A: "P", P: "A", S: "I", I: "S" };
const TO_THE_RIGHT = "LPI";
const UPWARD = "SAR";
const PLANE_NAMES = { R: "Sagittal", L: "Sagittal", A: "Coronal", P: "Coronal", S: "Axial", I: "Axial" };

/** Returns the size, axes and directions of the planes perpendicular to an axis. */
function planeGeometry(volume, axis) {
  const [rowAxis, columnAxis] = [0, 1, 2].filter((other) => other !== axis);
  const direction = (which) => volume.orientation[2 - which];
  const mirrored = !TO_THE_RIGHT.includes(direction(columnAxis));
  const upright = UPWARD.includes(direction(rowAxis));
  const right = mirrored ? OPPOSITE[direction(columnAxis)] : direction(columnAxis);
  const up = upright ? direction(rowAxis) : OPPOSITE[direction(rowAxis)];
  const width = volume.shape[columnAxis];
  const height = volume.shape[rowAxis];
  return {
    axis,
    rowAxis,
    columnAxis,
    mirrored,
    // Rows of a picture run down, so an axis that grows upwards is flipped.
    flipped: upright,
    width,
    height,
    widthMm: width * volume.spacing_mm[2 - columnAxis],
    heightMm: height * volume.spacing_mm[2 - rowAxis],
    name: PLANE_NAMES[direction(axis)],
    letters: { left: OPPOSITE[right], right, top: up, bottom: OPPOSITE[up] },
  };
}

/** Returns the voxels of a plane, row by row from the upper left corner. */
function cutPlane(array, volume, geometry, index) {
  const strides = [volume.shape[1] * volume.shape[2], volume.shape[2], 1];
  const { width, height, mirrored, flipped } = geometry;
  const plane = new array.constructor(width * height);
  const columnStep = strides[geometry.columnAxis] * (mirrored ? -1 : 1);
  for (let row = 0; row < height; row++) {
    let source = index * strides[geometry.axis];
    source += (flipped ? height - 1 - row : row) * strides[geometry.rowAxis];
    if (mirrored) source += (width - 1) * strides[geometry.columnAxis];
    for (let column = 0; column < width; column++) {
      plane[row * width + column] = array[source];
      source += columnStep;
    }
  }
  return plane;
}

/** Returns the "max" or "mean" of all planes along the geometry's axis. */
function project(array, volume, geometry, kind) {
  const depth = volume.shape[geometry.axis];
  const result = new Float32Array(geometry.width * geometry.height);
  if (kind === "max") result.fill(-Infinity);
  for (let index = 0; index < depth; index++) {
    const plane = cutPlane(array, volume, geometry, index);
    for (let i = 0; i < result.length; i++) {
      if (kind === "mean") result[i] += plane[i] / depth;
      else if (plane[i] > result[i]) result[i] = plane[i];
    }
  }
  return result;
}

/** Converts a column and row of a plane to indices of the volume. */
function voxelAt(geometry, column, row) {
  return {
    [geometry.columnAxis]: geometry.mirrored ? geometry.width - 1 - column : column,
    [geometry.rowAxis]: geometry.flipped ? geometry.height - 1 - row : row,
  };
}

/** Converts a box to the plane's {left, right, top, bottom}, in voxels from its corner. */
function boxOnPlane(geometry, box) {
  const span = (axis, size, flipped) => {
    const ends = [box.low[axis] + 0.5, box.high[axis] + 0.5];
    return flipped ? [size - ends[1], size - ends[0]] : ends;
  };
  const [left, right] = span(geometry.columnAxis, geometry.width, geometry.mirrored);
  const [top, bottom] = span(geometry.rowAxis, geometry.height, geometry.flipped);
  return { left, right, top, bottom };
}

/** Counts, in each plane along an axis, the voxels whose array index passes a test. */
function profile(volume, axis, test) {
  const counts = new Float32Array(volume.shape[axis]);
  const [depth, height, width] = volume.shape;
  for (let z = 0, i = 0; z < depth; z++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) {
        if (test(i)) counts[axis === 0 ? z : axis === 1 ? y : x]++;
      }
    }
  }
  return counts;
}
