STARTS.set("audit", () => {
  const table = DATA.audit;
  const columns = Object.keys(table);
  const count = table[columns[0]].length;
  const rows = Array.from({ length: count }, (_, index) => columns.map((name) => table[name][index]));
  let limit = 100;

  function show() {
    const wanted = byId("audit-filter").value.toLowerCase();
    const found = rows.filter((values) => values.join(" ").toLowerCase().includes(wanted));
    byId("audit-table").replaceChildren(row(columns.map((name) => name.replaceAll("_", " ")), "th"), ...found.slice(0, limit).map((values) => row(values)));
    byId("audit-count").textContent = `${found.length} of ${count} cells`;
    byId("audit-more").hidden = found.length <= limit;
  }

  byId("audit-filter").addEventListener("input", show);
  byId("audit-more").addEventListener("click", () => { limit += 400; show(); });
  byId("audit-cells").addEventListener("toggle", show, { once: true });
});
