STARTS.set("forgetting", () => {
  const SETUP = ["model", "data", "adapter", "setting"];
  const method = (cell) => cell.method ?? cell.loss ?? "";
  function chart() {
    const models = new Set(DATA.forgetting.map((cell) => cell.model ?? ""));
    const named = (cell) => (models.size > 1 ? [cell.model, method(cell)].filter(Boolean).join(", ") : method(cell));
    const names = [...new Set(DATA.forgetting.map(named))];
    const traces = names.map((name) => {
      const cells = DATA.forgetting.filter((cell) => named(cell) === name);
      const hover = (cell) => {
        const size = `${label(method(cell))}, rank ${shown(cell.rank)}${cell.keep ? `, keep ${shown(cell.keep)}` : ""}`;
        const numbers = [["layer", cell.layer], ["tokens", cell.seqlen], ["steps", cell.steps]].filter(([, value]) => value !== null && value !== undefined);
        const setup = [...SETUP.map((column) => cell[column]).filter(Boolean), ...numbers.map(([column, value]) => `${column} ${value}`)];
        return [size, ...setup.map(label)].join("<br>");
      };
      return {
        x: cells.map((cell) => cell.harm), y: cells.map((cell) => cell.recall), mode: "markers", name: label(name), marker: { size: 9 },
        text: cells.map(hover),
        hovertemplate: "%{text}<br>recall %{y:.2f}, harm %{x:.3f}<extra></extra>",
      };
    });
    return { traces, layout: { xaxis: axis("harm: loss added to other text, nats per token"), yaxis: axis("share recalled whole", { range: [-0.03, 1.03] }) } };
  }
  draw("forgetting-chart", chart);
});
