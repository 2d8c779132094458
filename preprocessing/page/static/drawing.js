// Draws a panel: slice or projection, labels, boxes, letters, scale, and the profile below it.

const DIFFERENCE_COLOURS = { missed: "#56B4E9", extra: "#D55E00" };
const BOX_STYLES = {
  reference: { colour: "#56B4E9", dash: [] },
  hit: { colour: "#F0E442", dash: [9, 5] },
  "further hit": { colour: "#F0E442", dash: [2, 5] },
  "false positive": { colour: "#FF7A1A", dash: [2, 5] },
};

/** Draws all panels; projections don't change with the position. */
function draw(view, { isMove = false } = {}) {
  if (!view.ready) return;
  for (const panel of view.panels) if (!(isMove && panel.isProjection)) drawPanel(view, panel);
}

function drawPanel(view, panel) {
  const { volume, position } = view;
  const { axis, geometry, frame, canvas } = panel;
  const context = canvas.getContext("2d");
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.translate(frame.x, frame.y);
  const size = [geometry.width * frame.scaleX, geometry.height * frame.scaleY];
  let [reference, prediction] = panel.isProjection
    ? panel.labels
    : [volume.reference, volume.prediction].map(
        (labels) => labels && cutPlane(labels, volume, geometry, position[axis]),
      );
  if (volume.image) {
    let plane, window;
    if (panel.isProjection) {
      panel.cut = panel.cut || panel.cutImage();
      [plane, window] = [panel.cut, spread(panel.cut)];
    } else {
      [plane, window] = [cutPlane(volume.image, volume, geometry, position[axis]), limits(view)];
    }
    context.imageSmoothingEnabled = true;
    context.imageSmoothingQuality = "high";
    context.drawImage(greyPicture(plane, geometry, window), 0, 0, ...size);
  }
  const on = (value) => value && view.classes[value - 1]?.on;
  if (byId("differences").checked && reference && prediction) {
    drawDifferences(view, context, geometry, reference, prediction, on, size);
  } else {
    if (prediction) drawAreas(view, context, geometry, prediction, on, size, opacity("prediction"));
    if (reference) drawOutlines(view, context, panel, reference, on, opacity("reference"));
    else if (prediction) drawOutlines(view, context, panel, prediction, on, opacity("prediction"));
  }
  drawBoxes(view, context, panel);
  drawFrame(view, context, panel, size);
  describe(view, panel);
  if (panel.profile) drawProfile(view, panel);
}

function drawAreas(view, context, geometry, labels, on, size, alpha) {
  const colours = view.classes.map(({ value }) => rgbOf(view.content.task.colours[value]));
  const picture = areaPicture(geometry, (i) => on(labels[i]) && colours[labels[i] - 1]);
  context.save();
  context.globalAlpha = alpha;
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, ...size);
  context.restore();
}

function drawDifferences(view, context, geometry, reference, prediction, on, size) {
  const [missed, extra] = Object.values(DIFFERENCE_COLOURS).map(rgbOf);
  const picture = areaPicture(geometry, (i) => {
    if (reference[i] === prediction[i] || !(on(reference[i]) || on(prediction[i]))) return null;
    return reference[i] > prediction[i] ? missed : extra;
  });
  context.save();
  context.globalAlpha = Math.max(0.3, opacity("prediction"));
  context.imageSmoothingEnabled = false;
  context.drawImage(picture, 0, 0, ...size);
  context.restore();
}

function drawOutlines(view, context, panel, labels, on, alpha) {
  const { geometry, frame } = panel;
  context.save();
  context.globalAlpha = alpha;
  for (const { value } of view.classes) {
    if (!on(value)) continue;
    const path = outlinePath(labels, geometry, value, frame.scaleX, frame.scaleY);
    strokeTwice(context, path, view.content.task.colours[value], 1.6 * frame.ratio);
  }
  context.restore();
}

/** Draws the boxes that intersect a plane; a projection shows all of them. */
function drawBoxes(view, context, panel) {
  const { geometry, frame, axis } = panel;
  const ratio = frame.ratio;
  const floor = scoreFloor(view);
  for (const box of view.volume.boxes) {
    if (box.score !== null && box.score < floor) continue;
    const index = view.position[axis];
    if (!panel.isProjection && !cuts(box, axis, index)) continue;
    const edges = boxOnPlane(geometry, box);
    const [x, y] = [edges.left * frame.scaleX, edges.top * frame.scaleY];
    const width = (edges.right - edges.left) * frame.scaleX;
    const height = (edges.bottom - edges.top) * frame.scaleY;
    const style = BOX_STYLES[box.kind];
    const path = new Path2D();
    path.rect(x, y, width, height);
    context.save();
    context.globalAlpha = box.kind === "reference" ? opacity("reference") : 1;
    strokeTwice(context, path, style.colour, 2 * ratio, style.dash.map((n) => n * ratio));
    // Labels of references stand above their box and those of detections below, to avoid overlap.
    const below = box.kind !== "reference";
    const line = below ? y + height + 10 * ratio : y - 10 * ratio;
    writeText(context, box.text, x + width / 2, line, 12 * ratio, style.colour);
    context.restore();
  }
}

/** Draws the crosshair, the letters of the anatomical directions and a scale. */
function drawFrame(view, context, panel, [width, height]) {
  const { geometry, frame } = panel;
  const { left, right, top, bottom } = geometry.letters;
  const size = 13 * frame.ratio;
  if (!panel.isProjection) {
    const path = new Path2D();
    const lineAt = (axis, flipped, count) => {
      const index = view.position[axis];
      return (flipped ? count - 1 - index : index) + 0.5;
    };
    const x = lineAt(geometry.columnAxis, geometry.mirrored, geometry.width) * frame.scaleX;
    const y = lineAt(geometry.rowAxis, geometry.flipped, geometry.height) * frame.scaleY;
    const gap = 14 * frame.ratio;
    addLine(path, x, 0, x, Math.max(0, y - gap));
    addLine(path, x, Math.min(height, y + gap), x, height);
    addLine(path, 0, y, Math.max(0, x - gap), y);
    addLine(path, Math.min(width, x + gap), y, width, y);
    context.save();
    context.strokeStyle = "rgba(255, 255, 255, 0.28)";
    context.lineWidth = frame.ratio;
    context.stroke(path);
    context.restore();
  }
  context.setTransform(1, 0, 0, 1, 0, 0);
  const { canvas } = panel;
  writeText(context, left, size * 0.9, canvas.height / 2, size);
  writeText(context, right, canvas.width - size * 0.9, canvas.height / 2, size);
  writeText(context, top, canvas.width / 2, size * 0.9, size);
  writeText(context, bottom, canvas.width / 2, canvas.height - size * 0.9, size);
  drawScale(context, panel, size);
}

function drawScale(context, panel, size) {
  const { canvas, frame } = panel;
  const lengthMm = [100, 50, 20, 10, 5].find((mm) => mm * frame.pixelsPerMm < canvas.width / 4) || 1;
  const [x, y] = [size, canvas.height - size];
  const path = new Path2D();
  addLine(path, x, y, x + lengthMm * frame.pixelsPerMm, y);
  strokeTwice(context, path, "#f2f2f2", 2 * frame.ratio);
  const text = lengthMm >= 10 ? `${lengthMm / 10} cm` : `${lengthMm} mm`;
  writeText(context, text, x, y - size * 0.9, size * 0.85, "#f2f2f2", "left");
}

function describe(view, panel) {
  const { volume, position } = view;
  const { axis, geometry } = panel;
  if (panel.isProjection) {
    const kind = byId("projection-kind").value === "max" ? "maximum" : "mean";
    panel.name.textContent = `${geometry.name} projection`;
    panel.place.textContent = `${kind} of all slices`;
    panel.canvas.setAttribute("aria-label", `${geometry.name} projection, ${kind}`);
    return;
  }
  const [start, step] = volume.file_index[axis];
  const number = Math.round(start + step * position[axis]) + 1;
  panel.name.textContent = geometry.name;
  panel.place.textContent = `slice ${number} of ${volume.file_shape[axis]}`;
  panel.slider.value = position[axis];
  panel.slider.setAttribute("aria-valuetext", panel.place.textContent);
  panel.canvas.setAttribute("aria-label", `${geometry.name}, ${panel.place.textContent}`);
  panel.canvas.dataset.index = position[axis];
}

/** Draws how many voxels of each label, or how many boxes, every slice has. */
function drawProfile(view, panel) {
  const canvas = panel.profile;
  const context = canvas.getContext("2d");
  const count = view.volume.shape[0];
  // Aligned with the slider, whose thumb stops half its width before the ends.
  const inset = 8 * panel.frame.ratio;
  const step = (canvas.width - 2 * inset) / Math.max(1, count - 1);
  context.clearRect(0, 0, canvas.width, canvas.height);
  for (const { counts, colour } of view.profiles) {
    const most = Math.max(1, ...counts);
    context.fillStyle = colour;
    counts.forEach((value, index) => {
      const height = value ? Math.max(2, (value / most) * canvas.height) : 0;
      context.fillRect(inset + (index - 0.5) * step, canvas.height - height, Math.max(1, step), height);
    });
  }
  context.fillStyle = "#ffffff";
  context.fillRect(inset + view.position[0] * step - 1, 0, 2, canvas.height);
}

/** Returns the intensities shown as black and as white. */
function limits(view) {
  const { width, centre } = view.window;
  return [centre - width / 2, centre + width / 2];
}

/** Returns the opacity set by a slider, from 0 to 1. */
function opacity(name) {
  return Number(byId(`${name}-opacity`).value) / 100;
}

/** Returns whether a box intersects a slice. */
function cuts(box, axis, index) {
  return box.low[axis] < index + 0.5 && box.high[axis] > index - 0.5;
}

/** Returns the percentiles 1 and 99.5 of the values. */
function spread(values) {
  const step = Math.max(1, Math.floor(values.length / 20000));
  const sample = values.filter((_, i) => i % step === 0).sort();
  const at = (share) => sample[Math.min(sample.length - 1, Math.floor(share * sample.length))];
  const [low, high] = [at(0.01), at(0.995)];
  return high > low ? [low, high] : [low - 0.5, low + 0.5];
}
