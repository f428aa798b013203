STARTS.set("law", () => {
  function hover(cells, index, size) {
    const lines = [
      label(cells.id[index]), `${size} ${shown(cells.size[index])}, ${shown(cells.target_tokens[index])} tokens`,
      `gain ${shown(cells.delta_loss[index])}: loss ${shown(cells.base_loss[index])} to ${shown(cells.final_loss[index])}`,
      `tokens recalled ${shown(cells.token_accuracy[index], 3)}, whole ${shown(cells.exact_match[index], 3)}`,
    ];
    if (cells.reason[index]) lines.push(label(cells.reason[index]));
    return lines.join("<br>");
  }

  function points(group) {
    const { cells } = group;
    const sizes = [...new Set(cells.size)].filter((size) => size > 0).sort((a, b) => a - b);
    const colours = cells.size.map((size) => rankColour(sizes.indexOf(size), sizes.length));
    return {
      sizes, colours,
      text: cells.size.map((_, index) => hover(cells, index, group.size)),
      symbols: cells.reason.map((reason) => (reason ? "circle-open" : "circle")),
    };
  }

  function lines(group) {
    const { cells } = group;
    const { sizes, colours, text, symbols } = points(group);
    const traces = [];
    group.lines.forEach((line, index) => {
      const nearest = sizes.reduce((best, size) => (Math.abs(size - line.size) < Math.abs(best - line.size) ? size : best), sizes[0]);
      const colour = rankColour(sizes.indexOf(nearest), sizes.length);
      const name = `${group.size} ${shown(line.size, 3)}`;
      traces.push({
        x: [...line.length, ...[...line.length].reverse()], y: [...line.high, ...[...line.low].reverse()],
        fill: "toself", fillcolor: colour, opacity: 0.12, line: { width: 0 }, mode: "lines",
        hoverinfo: "skip", showlegend: false, legendgroup: name,
      });
      traces.push({ x: line.length, y: line.value, mode: "lines", line: { color: colour }, name, legendgroup: name, hoverinfo: "skip" });
    });
    traces.push({
      x: cells.target_tokens, y: cells.delta_loss, mode: "markers", text, hoverinfo: "text",
      marker: { color: colours, symbol: symbols, size: 7 }, name: "measured", showlegend: false,
    });
    const gains = [...cells.delta_loss, ...group.lines.flatMap((line) => [...line.low, ...line.high])];
    return { traces, layout: { xaxis: axis("length, target tokens", marks(cells.target_tokens)), yaxis: axis("gain dL, nats per token", decades(gains)) } };
  }

  function surface(group) {
    const { cells } = group;
    const { text } = points(group);
    const traces = [{
      type: "scatter3d", mode: "markers", x: cells.target_tokens, y: cells.size, z: cells.delta_loss,
      text, hoverinfo: "text", marker: { size: 3, color: cells.delta_loss, colorscale: "Viridis" },
    }];
    if (group.surface) {
      traces.unshift({
        type: "surface", x: group.surface.length, y: group.surface.size, z: group.surface.gain,
        opacity: 0.65, showscale: false, hoverinfo: "skip", colorscale: "Viridis",
      });
    }
    const scene = (title, more) => ({ ...axis(title, more), automargin: undefined, color: style("--ink"), backgroundcolor: "rgba(0,0,0,0)" });
    return {
      traces,
      layout: {
        margin: { l: 0, r: 0, t: 0, b: 0 }, showlegend: false,
        scene: {
          xaxis: scene("length", marks(cells.target_tokens, 5)), yaxis: scene(group.size, marks(cells.size, 5)), zaxis: scene("gain", {}),
          camera: { eye: { x: -1.7, y: -1.8, z: 0.9 }, center: { x: 0, y: 0, z: -0.15 } },
        },
      },
    };
  }

  // On paper a canvas of WebGL is empty.
  function picture(group) {
    const image = byId("law-surface-print");
    image.hidden = !group.picture;
    if (group.picture) image.src = group.picture;
  }

  // Some browsers have no WebGL: what is for paper stands in its place.
  function surfaceOrPicture() {
    const hasWebGL = Boolean(document.createElement("canvas").getContext("webgl"));
    byId("law-surface-print").classList.toggle("paper", hasWebGL);
    byId("law-surface").hidden = !hasWebGL;
    if (hasWebGL) draw("law-surface", () => surface(DATA.law[chosen("law-group")]));
  }

  function parameters(group) {
    const head = row([group.formula ? `law: ${group.formula}` : "no law is identified", "value", "95 % interval"], "th");
    const rows = group.parameters.map(({ name, value, interval }) => row([name, value, interval.map((end) => shown(end)).join(" to ")]));
    byId("law-parameters").replaceChildren(head, ...rows);
  }

  function show() {
    const group = DATA.law[chosen("law-group")];
    draw("law-lines", () => lines(group));
    picture(group);
    parameters(group);
    // It takes longer than all the rest of what is seen first.
    whenIdle("law-surface", surfaceOrPicture);
    document.querySelectorAll(".note").forEach((note) => { note.hidden = Number(note.dataset.group) !== chosen("law-group"); });
  }

  onChoice("law-group", show);
  show();
});
