// Box plots, curves and scatter plots as SVG. A point is a case; a click opens it.

const CHART = { width: 480, height: 320, left: 58, right: 16, top: 14, bottom: 46 };
const SVG = "http://www.w3.org/2000/svg";

/** Adds a chart; returns {mark(case index)}. */
function addChart(parent, chart, cases, viewer) {
  const figure = addElement(parent, "figure", { class: "chart" });
  const heading = addElement(figure, "h3", {}, chart.title);
  const svg = addSvg(figure, "svg", { viewBox: `0 0 ${CHART.width} ${CHART.height}`, role: "group" });
  heading.id = `chart-${parent.children.length}`;
  svg.setAttribute("aria-labelledby", heading.id);
  if (chart.note) addElement(figure, "p", { class: "note" }, chart.note);
  const points = [];
  const draw = { box: drawBoxPlot, lines: drawLines, scatter: drawScatter }[chart.kind];
  draw(svg, chart, (x, y, value, index, colour) => {
    const point = addSvg(svg, "circle", { cx: x, cy: y, r: 4.2, fill: colour, class: "point" });
    addSvg(point, "title", {}, `${cases[index].id}: ${value}`);
    points.push({ point, index });
    if (!viewer.canOpen(index)) return;
    point.setAttribute("tabindex", 0);
    point.setAttribute("role", "button");
    point.setAttribute("aria-label", `${cases[index].id}: ${value}`);
    const open = () => viewer.open(index);
    point.addEventListener("click", open);
    point.addEventListener("keydown", (event) => {
      if (event.key === "Enter" || event.key === " ") {
        event.preventDefault();
        open();
      }
    });
  });
  return {
    mark(index) {
      for (const each of points) each.point.classList.toggle("open", each.index === index);
    },
  };
}

function addSvg(parent, tag, attributes = {}, text = "") {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== "") element.textContent = text;
  parent.append(element);
  return element;
}

/** Returns a function from values to pixel positions. */
function scaleOf([low, high], from, to) {
  return (value) => from + ((value - low) / (high - low || 1)) * (to - from);
}

/** Returns about five round values within a range. */
function ticksOf([low, high]) {
  const rough = (high - low) / 5 || 1;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) {
    ticks.push(Number(tick.toPrecision(12)));
  }
  return ticks;
}

/** Returns the axis' own range, or one with round ends that holds 0 and all values. */
function rangeOf(axis, values) {
  if (axis.range) return axis.range;
  const high = Math.max(...values, 0);
  const low = Math.min(...values, 0);
  const ticks = ticksOf([low, high > low ? high : low + 1]);
  const step = ticks[1] - ticks[0];
  const top = ticks[ticks.length - 1];
  return [Math.min(low, ticks[0]), top >= high ? top : top + step];
}

function drawYAxis(svg, axis, range) {
  const { width, height, left, right, top, bottom } = CHART;
  const y = scaleOf(range, height - bottom, top);
  for (const tick of ticksOf(range)) {
    addSvg(svg, "line", { class: "grid", x1: left, x2: width - right, y1: y(tick), y2: y(tick) });
    addSvg(svg, "text", { x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, tick.toLocaleString("en"));
  }
  addSvg(svg, "line", { class: "axis", x1: left, x2: left, y1: top, y2: height - bottom });
  const middle = (top + height - bottom) / 2;
  const rotated = { transform: `translate(13 ${middle}) rotate(-90)`, "text-anchor": "middle" };
  addSvg(svg, "text", rotated, axis.title);
  return y;
}

function drawXAxis(svg, axis, range) {
  const { width, height, left, right, bottom } = CHART;
  const x = scaleOf(range, left, width - right);
  for (const tick of ticksOf(range)) {
    const place = { x: x(tick), y: height - bottom + 17, "text-anchor": "middle" };
    addSvg(svg, "text", place, tick.toLocaleString("en"));
  }
  const y = height - bottom;
  addSvg(svg, "line", { class: "axis", x1: left, x2: width - right, y1: y, y2: y });
  const middle = (left + width - right) / 2;
  addSvg(svg, "text", { x: middle, y: height - 8, "text-anchor": "middle" }, axis.title);
  return x;
}

/** Returns a quantile of sorted values with linear interpolation. */
function quantileOf(sorted, share) {
  const place = (sorted.length - 1) * share;
  const below = Math.floor(place);
  const above = Math.min(sorted.length - 1, below + 1);
  return sorted[below] + (place - below) * (sorted[above] - sorted[below]);
}

/** Draws boxes with quartiles and median; whiskers end at the last value within 1.5 boxes. */
function drawBoxPlot(svg, chart, addPoint) {
  const { width, height, left, right, bottom } = CHART;
  const groups = Object.entries(chart.groups);
  const all = groups.flatMap(([, pairs]) => pairs.map(([value]) => value));
  const y = drawYAxis(svg, chart.y, rangeOf(chart.y, all));
  const room = (width - left - right) / groups.length;
  const base = height - bottom;
  addSvg(svg, "line", { class: "axis", x1: left, x2: width - right, y1: base, y2: base });
  groups.forEach(([name, pairs], number) => {
    const colour = chart.colours[number];
    const middle = left + (number + 0.5) * room;
    const half = Math.min(34, room * 0.3);
    addSvg(svg, "text", { x: middle, y: base + 17, "text-anchor": "middle" }, name);
    const count = `n = ${pairs.length}`;
    addSvg(svg, "text", { x: middle, y: base + 33, "text-anchor": "middle" }, count);
    if (!pairs.length) return;
    const sorted = pairs.map(([value]) => value).sort((a, b) => a - b);
    const [first, median, third] = [0.25, 0.5, 0.75].map((share) => quantileOf(sorted, share));
    const reach = 1.5 * (third - first);
    const inside = sorted.filter((value) => value >= first - reach && value <= third + reach);
    const [low, high] = [inside[0], inside[inside.length - 1]];
    const line = (x1, y1, x2, y2, thick = 1.4) =>
      addSvg(svg, "line", { x1, y1, x2, y2, stroke: colour, "stroke-width": thick });
    line(middle, y(low), middle, y(first));
    line(middle, y(third), middle, y(high));
    for (const end of [low, high]) line(middle - half / 2, y(end), middle + half / 2, y(end));
    addSvg(svg, "rect", {
      class: "box",
      x: middle - half,
      y: y(third),
      width: 2 * half,
      height: Math.max(0.5, y(first) - y(third)),
      fill: colour,
      stroke: colour,
    });
    line(middle - half, y(median), middle + half, y(median), 3);
    pairs.forEach(([value, index], place) => {
      // Steps of the golden ratio spread neighbouring points.
      const aside = (((place * 0.618034) % 1) - 0.5) * half * 1.4;
      const text = `${name} ${formatNumber(value, chart.digits)}`;
      addPoint(middle + aside, y(value), text, index, colour);
    });
  });
}

function drawLines(svg, chart) {
  const { width, right, top } = CHART;
  const points = Object.values(chart.series).flat();
  const x = drawXAxis(svg, chart.x, rangeOf(chart.x, points.map(([value]) => value)));
  const y = drawYAxis(svg, chart.y, rangeOf(chart.y, points.map(([, value]) => value)));
  Object.entries(chart.series).forEach(([name, own], number) => {
    const places = own.map(([a, b]) => `${x(a).toFixed(2)},${y(b).toFixed(2)}`).join(" ");
    const stroke = { class: "curve", stroke: chart.colours[number] };
    if (number) stroke["stroke-dasharray"] = "7 4";
    addSvg(addSvg(svg, "polyline", { points: places, ...stroke }), "title", {}, name);
    const row = chart.legend_low ? CHART.height - CHART.bottom - 14 - 18 * number : top + 8 + 18 * number;
    const end = width - right;
    addSvg(svg, "line", { x1: end - 28, x2: end, y1: row, y2: row, ...stroke });
    addSvg(svg, "text", { x: end - 34, y: row + 4, "text-anchor": "end" }, name);
  });
}

function drawScatter(svg, chart, addPoint) {
  const values = chart.points.flatMap(([a, b]) => [a, b]);
  const range = rangeOf(chart.x, values);
  const x = drawXAxis(svg, chart.x, range);
  const y = drawYAxis(svg, chart.y, range);
  const [low, high] = range;
  addSvg(svg, "line", { class: "axis", x1: x(low), y1: y(low), x2: x(high), y2: y(high), "stroke-dasharray": "5 5" });
  for (const [a, b, index] of chart.points) {
    const text = `${chart.x.title} ${formatNumber(a, chart.digits)}, ${chart.y.title} ${formatNumber(b, chart.digits)}`;
    addPoint(x(a), y(b), text, index, chart.colour);
  }
}
