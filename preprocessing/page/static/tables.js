// Tables; a click on a column's header sorts by it.

/** Adds a table whose rows open their cases. Returns {mark(case index)}. */
function addTable(parent, table, viewer) {
  const section = addElement(parent, "section");
  const id = `table-${table.title.toLowerCase().replaceAll(" ", "-")}`;
  const heading = addElement(section, "h2", { id }, table.title);
  if (table.note) addElement(section, "p", { class: "note" }, table.note);
  const scroll = addElement(section, "div", { class: "scroll", tabindex: 0 });
  scroll.setAttribute("role", "region");
  scroll.setAttribute("aria-labelledby", heading.id);
  const element = addElement(scroll, "table");
  const head = addElement(addElement(element, "thead"), "tr");
  const body = addElement(element, "tbody");
  const rows = table.rows.map(([index, cells]) => {
    const element = makeRow(index, cells, table.columns, viewer);
    return { index, cells, element };
  });
  const headers = table.columns.map((column, number) => {
    const isNumber = column.digits !== null;
    const header = addElement(head, "th", { scope: "col", class: isNumber ? "number" : "" });
    if (column.help) header.title = column.help;
    addButton(header, column.name, () => sortBy(number));
    return header;
  });
  const show = (sorted) => body.replaceChildren(...sorted.map((row) => row.element));
  show(rows);

  function sortBy(number) {
    const before = headers[number].getAttribute("aria-sort");
    const direction = before === "ascending" ? "descending" : "ascending";
    for (const header of headers) header.removeAttribute("aria-sort");
    headers[number].setAttribute("aria-sort", direction);
    const sign = direction === "ascending" ? 1 : -1;
    show([...rows].sort((a, b) => compare(a.cells[number], b.cells[number], sign)));
  }

  return {
    mark(index) {
      for (const row of rows) row.element.classList.toggle("open", row.index === index);
    },
  };
}

/** Compares numbers or texts; undefined values come last in both directions. */
function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

function makeRow(index, cells, columns, viewer) {
  const element = document.createElement("tr");
  cells.forEach((value, number) => {
    const { digits, wide } = columns[number];
    const text = digits === null ? (value ?? "\u2013") : formatNumber(value, digits);
    const cell = addElement(element, "td", { class: digits === null ? "" : "number" });
    if (wide) cell.className = "wide";
    if (value === "error" || value === "warning") cell.className = value;
    if (number === 0 && viewer.canOpen(index)) {
      addButton(cell, text, () => {
        viewer.open(index);
        byId("viewer").scrollIntoView();
      });
    } else {
      cell.textContent = text;
    }
  });
  return element;
}
