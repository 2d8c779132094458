// Pixels on a canvas: grey values, areas, outlines and texts.

/** Returns a canvas with a plane in grey values, from `low` as black to `high` as white. */
function greyPicture(plane, geometry, [low, high]) {
  const picture = blankPicture(geometry);
  const pixels = new Uint32Array(picture.data.buffer);
  const scale = 255 / Math.max(high - low, 1e-6);
  for (let i = 0; i < plane.length; i++) {
    const grey = Math.max(0, Math.min(255, Math.round((plane[i] - low) * scale)));
    pixels[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
  return onCanvas(picture);
}

/** Returns a canvas with an opaque pixel wherever `colourOf(index)` returns [r, g, b]. */
function areaPicture(geometry, colourOf) {
  const picture = blankPicture(geometry);
  const pixels = new Uint32Array(picture.data.buffer);
  for (let i = 0; i < pixels.length; i++) {
    const colour = colourOf(i);
    if (colour) pixels[i] = 0xff000000 | (colour[2] << 16) | (colour[1] << 8) | colour[0];
  }
  return onCanvas(picture);
}

function blankPicture(geometry) {
  return new ImageData(geometry.width, geometry.height);
}

function onCanvas(picture) {
  const canvas = document.createElement("canvas");
  canvas.width = picture.width;
  canvas.height = picture.height;
  canvas.getContext("2d").putImageData(picture, 0, 0);
  return canvas;
}

/** Returns the border of a label's voxels as a path in pixels. */
function outlinePath(labels, geometry, value, scaleX, scaleY) {
  const { width, height } = geometry;
  const path = new Path2D();
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const i = row * width + column;
      if (labels[i] !== value) continue;
      const [x, y] = [column * scaleX, row * scaleY];
      if (row === 0 || labels[i - width] !== value) addLine(path, x, y, x + scaleX, y);
      if (column === 0 || labels[i - 1] !== value) addLine(path, x, y, x, y + scaleY);
      if (row === height - 1 || labels[i + width] !== value) {
        addLine(path, x, y + scaleY, x + scaleX, y + scaleY);
      }
      if (column === width - 1 || labels[i + 1] !== value) {
        addLine(path, x + scaleX, y, x + scaleX, y + scaleY);
      }
    }
  }
  return path;
}

function addLine(path, x0, y0, x1, y1) {
  path.moveTo(x0, y0);
  path.lineTo(x1, y1);
}

/** Strokes a path in a colour on a dark rim, visible on bright tissue. */
function strokeTwice(context, path, colour, width, dash = []) {
  context.save();
  context.setLineDash([]);
  context.lineCap = "round";
  context.strokeStyle = "rgba(0, 0, 0, 0.55)";
  context.lineWidth = width + 1.5;
  context.stroke(path);
  context.setLineDash(dash);
  context.strokeStyle = colour;
  context.lineWidth = width;
  context.stroke(path);
  context.restore();
}

/** Writes a short text with a dark rim. */
function writeText(context, text, x, y, size, colour = "#f2f2f2", align = "center") {
  context.save();
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textAlign = align;
  context.textBaseline = "middle";
  context.lineJoin = "round";
  context.lineWidth = size / 4;
  context.strokeStyle = "rgba(0, 0, 0, 0.8)";
  context.strokeText(text, x, y);
  context.fillStyle = colour;
  context.fillText(text, x, y);
  context.restore();
}

function rgbOf(colour) {
  return [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16));
}
