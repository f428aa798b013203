STARTS.set("predictor", () => {
  const input = byId("predictor-length");
  const table = () => DATA.predictor[chosen("predictor-group")];
  const rank = (value) => (value === null ? "no rank" : shown(value));

  // The next tabulated length, so that the answer is never too small.
  function answer() {
    const { length, value, low, high, outside, trained } = table();
    const asked = Number(input.value);
    const output = byId("predictor-answer");
    byId("predictor-echo").textContent = input.value;
    if (!(asked >= length[0] && asked <= length.at(-1))) {
      output.textContent = `type a length from ${length[0]} to ${length.at(-1)}; trained were ${trained[0]} to ${trained[1]}`;
      return null;
    }
    const index = length.findIndex((tabulated) => tabulated >= asked);
    const note = outside[index] ? `; ${outside[index]}` : "";
    output.textContent = `rank ${rank(value[index])} (95 %: ${rank(low[index])} to ${rank(high[index])}${note})`;
    return { length: asked, rank: value[index] };
  }

  function chart() {
    const { length, value, low, high, trained } = table();
    const found = answer();
    const inside = (at) => at >= trained[0] && at <= trained[1];
    const line = (keep, dash) => ({ x: length, y: value.map((rank, k) => (keep(length[k]) ? rank : null)), mode: "lines", line: { dash, color: style("--accent") }, hovertemplate: "%{x} tokens: rank %{y}<extra></extra>", showlegend: false });
    const known = length.map((_, k) => k).filter((k) => low[k] !== null && high[k] !== null);
    const traces = [
      { x: [...known.map((k) => length[k]), ...known.map((k) => length[k]).reverse()], y: [...known.map((k) => high[k]), ...known.map((k) => low[k]).reverse()], fill: "toself", opacity: 0.15, fillcolor: style("--accent"), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false },
      line(inside, "solid"), line((at) => !inside(at), "dot"),
    ];
    if (found && found.rank !== null) traces.push({ x: [found.length], y: [found.rank], mode: "markers", marker: { size: 11, color: "#e69138" }, hoverinfo: "skip", showlegend: false });
    return { traces, layout: { xaxis: axis("target tokens", decades(length)), yaxis: axis("least rank", decades(value)) } };
  }

  const show = () => draw("predictor-chart", chart);
  input.addEventListener("input", show);
  onChoice("predictor-group", () => { input.value = table().trained[1]; show(); });
  show();
});
