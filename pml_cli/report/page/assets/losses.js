STARTS.set("losses", () => {
  const COLOURS = ["#7f7f7f", "#e69138", "#542788", "#1fa187", "#365c8d", "#c62828", "#a0da39", "#46327e"];
  function chart() {
    const { lines } = DATA.losses[chosen("losses-group")];
    const traces = lines.flatMap((line, index) => {
      const color = COLOURS[index % COLOURS.length];
      const name = label(line.loss);
      return [
        { x: line.rank, y: line.exact_match, name, mode: "lines+markers", line: { color }, legendgroup: name },
        { x: line.rank, y: line.token_accuracy, name: `${name}, tokens`, mode: "lines", line: { color, dash: "dot" }, legendgroup: name, showlegend: false },
      ];
    });
    const ranks = lines.flatMap((line) => line.rank);
    return { traces, layout: { xaxis: axis("rank", marks(ranks)), yaxis: axis("share recalled", { range: [-0.03, 1.03] }) } };
  }

  const show = () => draw("losses-chart", chart);
  onChoice("losses-group", show);
  show();
});
