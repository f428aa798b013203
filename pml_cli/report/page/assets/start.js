// A section starts when it comes near the screen; all start before the page is printed.
(() => {
  const button = byId("theme");
  const root = document.documentElement;
  const redraw = () => CHARTS.forEach((make, id) => draw(id, make));

  function start(name) {
    const run = STARTS.get(name);
    STARTS.delete(name);
    if (run) run();
  }

  function nameButton() {
    button.textContent = isDark() ? "Light" : "Dark";
    button.setAttribute("aria-pressed", String(isDark()));
  }
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    nameButton();
    redraw();
  });
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { nameButton(); redraw(); });

  // Paper is white, and has no folds.
  let themeBefore;
  let folded = [];
  addEventListener("beforeprint", () => {
    themeBefore = root.dataset.theme;
    root.dataset.theme = "light";
    root.classList.add("printing");
    folded = [...document.querySelectorAll("details:not([open], #audit-cells)")];
    for (const details of folded) details.open = true;
    [...STARTS.keys()].forEach(start);
    redraw();
  });
  addEventListener("afterprint", () => {
    root.classList.remove("printing");
    if (themeBefore) root.dataset.theme = themeBefore;
    else delete root.dataset.theme;
    for (const details of folded) details.open = false;
    redraw();
  });

  nameButton();
  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) if (entry.isIntersecting) start(entry.target.id);
  }, { rootMargin: "400px" });
  document.querySelectorAll("section").forEach((section) => near.observe(section));
  root.dataset.ready = "true";
})();
