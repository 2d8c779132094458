// Builds the page from its content.

function main() {
  const content = JSON.parse(byId("page-content").textContent);
  byId("subtitle").textContent = content.subtitle;
  const marked = [];
  const viewer = makeViewer(content, (index) => marked.forEach((each) => each.mark(index)));
  for (const table of content.tables) {
    const parent = byId(table.first ? "case-tables" : "other-tables");
    marked.push(addTable(parent, table, viewer));
  }
  for (const chart of content.charts) {
    byId("charts").hidden = false;
    marked.push(addChart(byId("chart-grid"), chart, content.cases, viewer));
  }
  for (const note of content.notes) {
    byId("notes").hidden = false;
    addElement(byId("note-list"), "li", {}, note);
  }
  for (const heading of document.querySelectorAll("main h2")) {
    if (heading.closest("[hidden]")) continue;
    addElement(byId("contents"), "a", { href: `#${heading.id}` }, heading.textContent);
  }
}

main();
