STARTS.set("tokens", () => {
  const slider = byId("tokens-step");
  const LEVELS = 255;

  // p of a run as an array for each logged step.
  function unpack(run) {
    const bytes = Uint8Array.from(atob(run.p), (letter) => letter.charCodeAt(0));
    const count = run.text.length;
    return run.steps.map((_, step) => Array.from(bytes.subarray(step * count, (step + 1) * count), (byte) => byte / LEVELS));
  }

  const unpacked = new Map();
  function current() {
    const index = chosen("tokens-run");
    if (!unpacked.has(index)) unpacked.set(index, unpack(DATA.tokens[index]));
    return { run: DATA.tokens[index], p: unpacked.get(index) };
  }

  const place = (run, index) => `sample ${run.sample[index]}, position ${run.position[index]}: ${label(JSON.stringify(run.text[index]))}`;

  function map() {
    const { run, p } = current();
    const trace = {
      type: "heatmap", z: p, y: run.steps.map(String), text: p.map(() => run.text.map((_, index) => place(run, index))),
      colorscale: BELOW_ABOVE, zmin: 0, zmax: 1, colorbar: { thickness: 12, title: { text: "p" } },
      hovertemplate: "%{text}<br>step %{y}: p = %{z:.2f}<extra></extra>",
    };
    return { traces: [trace], layout: { xaxis: axis("target token", { showgrid: false }), yaxis: axis("step", { type: "category", showgrid: false, nticks: 8 }) } };
  }

  function line() {
    const { run, p } = current();
    const values = p[Number(slider.value)];
    const trace = {
      type: "bar", y: values, text: values.map((_, index) => place(run, index)), textposition: "none",
      marker: { color: values.map((value) => (value > 0.5 ? "#8560be" : "#e69138")) }, hovertemplate: "%{text}<br>p = %{y:.2f}<extra></extra>",
    };
    const half = { type: "line", xref: "paper", x0: 0, x1: 1, y0: 0.5, y1: 0.5, line: { color: style("--ink"), width: 1 } };
    return { traces: [trace], layout: { xaxis: axis("target token"), yaxis: axis("p", { range: [0, 1] }), shapes: [half], bargap: 0.1 } };
  }

  function word(run, values, index, isFailure) {
    const made = element("span", run.text[index], "token");
    made.style.setProperty("--share", values[index]);
    made.classList.toggle("above", values[index] > 0.5);
    made.title = `position ${run.position[index]}, p = ${values[index].toFixed(2)}; after training ${run.correct[index] ? "right" : `wrong: ${JSON.stringify(run.picked[index])} is picked`}`;
    if (isFailure) {
      made.classList.add("failure");
      made.setAttribute("aria-label", `${run.text[index]}, the first wrong token`);
    }
    return made;
  }

  function text() {
    const { run, p } = current();
    const values = p[Number(slider.value)];
    const panel = byId("tokens-text");
    panel.replaceChildren();
    panel.classList.toggle("ids", !run.is_text);
    let paragraph = null;
    let sample = null;
    let hasFailed = false;
    run.text.forEach((_, index) => {
      if (run.sample[index] !== sample) {
        sample = run.sample[index];
        hasFailed = false;
        paragraph = document.createElement("p");
        const prompt = run.prompts[sample];
        if (prompt) paragraph.append(element("span", /\s$/.test(prompt) ? prompt : `${prompt} `, "prompt"));
        panel.append(paragraph);
      }
      const isFailure = !hasFailed && !run.correct[index];
      hasFailed ||= isFailure;
      paragraph.append(word(run, values, index, isFailure));
      if (!run.is_text) paragraph.append(" ");
    });
    if (run.left_out) panel.append(element("p", `${run.left_out} more tokens are not shown.`, "small"));
  }

  function showStep() {
    const { run } = current();
    byId("tokens-step-name").textContent = run.steps[Number(slider.value)];
    draw("tokens-line", line);
    text();
  }

  function show() {
    const { run } = current();
    slider.max = run.steps.length - 1;
    slider.value = slider.max;
    draw("tokens-map", map);
    showStep();
  }

  slider.addEventListener("input", showStep);
  onChoice("tokens-run", show);
  show();
});
