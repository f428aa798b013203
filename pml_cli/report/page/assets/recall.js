STARTS.set("recall", () => {
  function map() {
    const group = DATA.recall.groups[chosen("recall-group")];
    const measure = DATA.recall.measures[chosen("recall-measure")];
    const values = group.maps[measure.column];
    const names = (numbers) => numbers.map((number) => shown(number));
    const isSmall = group.rank.length * group.length.length <= 200;
    const trace = {
      type: "heatmap", x: names(group.length), y: names(group.rank), z: values, customdata: group.cells, colorscale: "Viridis",
      hovertemplate: "rank %{y}, %{x} tokens: %{z} (%{customdata} cells)<extra></extra>",
      texttemplate: isSmall ? "%{z:.3~g}" : "", colorbar: { thickness: 12 },
    };
    if (measure.share) Object.assign(trace, { zmin: 0, zmax: 1 });
    const category = { type: "category", showgrid: false };
    return { traces: [trace], layout: { xaxis: axis("length, target tokens", category), yaxis: axis("rank", category) } };
  }

  const show = () => draw("recall-map", map);
  onChoice("recall-group", show);
  onChoice("recall-measure", show);
  show();
});
