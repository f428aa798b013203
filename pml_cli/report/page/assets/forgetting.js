STARTS.set("forgetting", () => {
  function chart() {
    const methods = [...new Set(DATA.forgetting.map((cell) => cell.method ?? cell.loss ?? ""))];
    const traces = methods.map((method) => {
      const cells = DATA.forgetting.filter((cell) => (cell.method ?? cell.loss ?? "") === method);
      return {
        x: cells.map((cell) => cell.harm), y: cells.map((cell) => cell.recall), mode: "markers", name: label(method), marker: { size: 9 },
        text: cells.map((cell) => `${label(method)}, rank ${shown(cell.rank)}${cell.keep ? `, keep ${shown(cell.keep)}` : ""}`),
        hovertemplate: "%{text}<br>recall %{y:.2f}, harm %{x:.3f}<extra></extra>",
      };
    });
    return { traces, layout: { xaxis: axis("harm: loss added to other text, nats per token"), yaxis: axis("share recalled whole", { range: [-0.03, 1.03] }) } };
  }
  draw("forgetting-chart", chart);
});
