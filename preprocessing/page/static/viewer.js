// The viewer of volumes: one case at a time, the worst one first.

/** Creates the viewer; returns {open(case index), canOpen(case index)}. */
function makeViewer(content, onOpen) {
  const shown = content.order.filter((index) => content.cases[index].volume);
  const boxes = shown.flatMap((index) => content.cases[index].volume.boxes);
  // The state that all scripts of the viewer share.
  const view = {
    content,
    onOpen,
    shown,
    classes: content.task.classes.map((name, value) => ({ name, value, on: true })).slice(1),
    scores: boxes.map((box) => box.score).filter((score) => score !== null),
    panels: [],
    index: null,
    volume: null,
    position: [0, 0, 0],
    window: null,
    opening: 0,
    ready: false,
  };
  if (shown.length) {
    byId("viewer").hidden = false;
    bindCaseChoice(view);
    bindControls(view);
    bindShortcuts(view);
    window.addEventListener("resize", () => sizePanels(view));
    openCase(view, shown[0]);
  }
  return {
    open: (index) => openCase(view, index),
    canOpen: (index) => shown.includes(index),
  };
}

function bindCaseChoice(view) {
  const choice = byId("case-choice");
  for (const index of view.shown) {
    addElement(choice, "option", { value: index }, view.content.cases[index].id);
  }
  choice.addEventListener("change", () => openCase(view, Number(choice.value)));
  byId("previous-case").addEventListener("click", () => step(view, -1));
  byId("next-case").addEventListener("click", () => step(view, 1));
}

function bindShortcuts(view) {
  const toggle = (name, on) => {
    const slider = byId(`${name}-opacity`);
    slider.value = Number(slider.value) ? 0 : on;
    slider.dispatchEvent(new Event("input"));
  };
  const actions = {
    "[": () => step(view, -1),
    "]": () => step(view, 1),
    r: () => toggle("reference", 100),
    p: () => toggle("prediction", 40),
    d: () => byId("differences").click(),
  };
  document.addEventListener("keydown", (event) => {
    if (event.target.matches("select") || event.ctrlKey || event.metaKey || event.altKey) return;
    actions[event.key.toLowerCase()]?.();
  });
}

/** Opens a case: decodes its volumes, lays out its planes, and goes to its content. */
async function openCase(view, index) {
  if (!view.content.cases[index]?.volume) return;
  const turn = ++view.opening;
  byId("case-choice").value = index;
  byId("loading").textContent = "decoding ...";
  const volume = await decodeCase(index, view.content.cases[index].volume);
  // Another case may have been chosen while this one was decoded.
  if (turn !== view.opening) return;
  Object.assign(view, { index, volume, ready: false });
  byId("loading").textContent = "";
  byId("case-note").textContent = view.content.cases[index].note;
  const facts = byId("case-facts");
  facts.replaceChildren();
  for (const [name, value] of view.content.cases[index].facts) {
    addElement(facts, "span", {}, `${name} ${value}`);
  }
  measureProfiles(view);
  layOut(view);
  makeJumps(view);
  makeOverlayControls(view);
  makeWindowControls(view);
  view.ready = true;
  goToContent(view);
  view.onOpen(index);
  document.body.dataset.open = index;
}

/** Opens the next (1) or previous (-1) case. */
function step(view, by) {
  const next = view.shown.indexOf(view.index) + by;
  if (next >= 0 && next < view.shown.length) openCase(view, view.shown[next]);
}
