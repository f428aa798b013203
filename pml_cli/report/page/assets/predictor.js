STARTS.set("predictor", () => {
  const input = byId("predictor-length");
  const table = () => DATA.predictor[chosen("predictor-group")];
  const rank = (value) => (value === null ? "no rank" : shown(value));
  const percent = (chance) => `${shown(100 * chance)} %`;

  // The next tabulated length, so that the answer is never too small.
  function answer() {
    const { length, chances, trained } = table();
    const asked = Number(input.value);
    const output = byId("predictor-answer");
    byId("predictor-echo").textContent = input.value;
    if (!(Number.isInteger(asked) && asked >= length[0] && asked <= length.at(-1))) {
      output.textContent = `type a whole number from ${length[0]} to ${length.at(-1)}; trained were ${trained[0]} to ${trained[1]}`;
      return null;
    }
    const index = length.findIndex((tabulated) => tabulated >= asked);
    output.textContent = chances.map(({ chance, value, low, high, outside }) => {
      const note = outside[index] ? `; ${outside[index]}` : "";
      return `${percent(chance)}: rank ${rank(value[index])} (${rank(low[index])} to ${rank(high[index])}${note})`;
    }).join(" · ");
    return { length: asked, rank: chances[0].value[index] };
  }

  function chart() {
    const { length, chances, trained } = table();
    const [{ chance, low, high }] = chances;
    const found = answer();
    const inside = (at) => at >= trained[0] && at <= trained[1];
    const line = (values, keep, dash, color, name) => ({
      x: length, y: values.map((rank, k) => (keep(length[k]) ? rank : null)), mode: "lines", line: { dash, color },
      hovertemplate: "%{x} tokens: rank %{y}<extra></extra>", name, showlegend: Boolean(name),
    });
    const known = length.map((_, k) => k).filter((k) => low[k] !== null && high[k] !== null);
    const traces = [
      { x: [...known.map((k) => length[k]), ...known.map((k) => length[k]).reverse()], y: [...known.map((k) => high[k]), ...known.map((k) => low[k]).reverse()], fill: "toself", opacity: 0.15, fillcolor: style("--accent"), line: { width: 0 }, mode: "lines", hoverinfo: "skip", showlegend: false },
    ];
    chances.forEach((each, k) => {
      const color = k ? "#1fa187" : style("--accent");
      traces.push(line(each.value, inside, "solid", color, `recalled in ${percent(each.chance)}`));
      traces.push(line(each.value, (at) => !inside(at), "dot", color, ""));
    });
    if (found && found.rank !== null) traces.push({ x: [found.length], y: [found.rank], mode: "markers", marker: { size: 11, color: "#e69138" }, hoverinfo: "skip", showlegend: false });
    const ranks = chances.flatMap(({ value }) => value);
    return { traces, layout: { xaxis: axis("target tokens", decades(length)), yaxis: axis("least rank", decades(ranks)), legend: { orientation: "h", y: -0.35 } } };
  }

  const show = () => draw("predictor-chart", chart);
  input.addEventListener("input", show);
  onChoice("predictor-group", () => { input.value = table().trained[1]; show(); });
  show();
});
