// Position of the planes, and its changes by keys, clicks and jumps.

function moveByKey(view, axis, event) {
  const last = view.volume.shape[axis] - 1;
  const now = view.position[axis];
  const targets = {
    ArrowUp: now + 1,
    ArrowRight: now + 1,
    ArrowDown: now - 1,
    ArrowLeft: now - 1,
    PageUp: now + 10,
    PageDown: now - 10,
    Home: 0,
    End: last,
  };
  if (!(event.key in targets) || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  moveTo(view, axis, targets[event.key]);
}

function moveTo(view, axis, index) {
  if (!view.volume) return;
  const clamped = Math.max(0, Math.min(view.volume.shape[axis] - 1, Math.round(index)));
  view.position[axis] = clamped;
  draw(view, { isMove: true });
}

function goToClick(view, panel, event) {
  if (!view.volume) return;
  const { geometry, frame } = panel;
  const bounds = panel.canvas.getBoundingClientRect();
  const ratio = panel.canvas.width / bounds.width;
  const column = ((event.clientX - bounds.left) * ratio - frame.x) / frame.scaleX;
  const row = ((event.clientY - bounds.top) * ratio - frame.y) / frame.scaleY;
  if (column < 0 || row < 0 || column >= geometry.width || row >= geometry.height) return;
  const voxel = voxelAt(geometry, Math.floor(column), Math.floor(row));
  for (const [axis, index] of Object.entries(voxel)) view.position[axis] = index;
  draw(view, { isMove: true });
}

/** Goes to the slice with most voxels of a label, and in it to the row and column with most. */
function goToLabel(view, value) {
  const { volume } = view;
  const labels = volume.reference || volume.prediction;
  const [, height, width] = volume.shape;
  let isInside = () => true;
  view.position = [0, 1, 2].map((axis) => {
    const counts = profile(volume, axis, (i) => labels[i] === value && isInside(i));
    const index = counts.indexOf(Math.max(...counts));
    const before = isInside;
    const indexOf = [
      (i) => Math.floor(i / (height * width)),
      (i) => Math.floor(i / width) % height,
      (i) => i % width,
    ][axis];
    isInside = (i) => before(i) && indexOf(i) === index;
    return index;
  });
  draw(view);
}

function goToBox(view, box) {
  const { shape } = view.volume;
  view.position = shape.map((size, axis) => {
    const middle = Math.round((box.low[axis] + box.high[axis]) / 2);
    return Math.max(0, Math.min(size - 1, middle));
  });
  draw(view);
}

/** Goes to the first box, else to the last class that has voxels, else to the middle. */
function goToContent(view) {
  const { volume, profiles } = view;
  view.position = volume.shape.map((size) => size >> 1);
  const found = profiles.filter(({ counts, value }) => value && counts.some(Boolean)).pop();
  if (volume.boxes.length) goToBox(view, volume.boxes[0]);
  else if (found) goToLabel(view, found.value);
  else draw(view);
}

function measureProfiles(view) {
  const { volume } = view;
  const { reference, prediction } = volume;
  const labels = reference || prediction;
  view.profiles = labels
    ? view.classes.map(({ value }) => ({
        counts: profile(volume, 0, (i) => labels[i] === value),
        colour: `${view.content.task.colours[value]}66`,
        value,
      }))
    : [];
  const slices = [...Array(volume.shape[0]).keys()];
  for (const isReference of [true, false]) {
    const boxes = volume.boxes.filter((box) => (box.kind === "reference") === isReference);
    if (!boxes.length) continue;
    const counts = slices.map((z) => boxes.filter((box) => cuts(box, 0, z)).length);
    const { colour } = BOX_STYLES[isReference ? "reference" : "hit"];
    view.profiles.push({ counts, colour: `${colour}66` });
  }
  if (reference && prediction) {
    const counts = profile(volume, 0, (i) => reference[i] !== prediction[i]);
    view.differences = counts;
  } else {
    view.differences = null;
  }
}
