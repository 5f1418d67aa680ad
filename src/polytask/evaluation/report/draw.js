// Draws the page's figures with the colours that the style sheet has just now: light, dark or print.
(() => {
  const specs = JSON.parse(document.getElementById("figures").textContent);
  const plots = Array.from(document.querySelectorAll("[data-figure]"));
  const config = { displayModeBar: false, responsive: true, scrollZoom: false, doubleClick: false };

  // "$name" is the CSS variable --name; "$name/0.2" is that colour with this opacity.
  function resolved(value, style) {
    if (typeof value === "string" && value.startsWith("$")) {
      const [name, opacity] = value.slice(1).split("/");
      const found = style.getPropertyValue("--" + name).trim();
      if (opacity === undefined) return found;
      const [red, green, blue] = [1, 3, 5].map((start) => parseInt(found.slice(start, start + 2), 16));
      return `rgba(${red}, ${green}, ${blue}, ${opacity})`;
    }
    if (Array.isArray(value)) return value.map((item) => resolved(item, style));
    if (value !== null && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, item]) => [key, resolved(item, style)]));
    }
    return value;
  }

  function draw() {
    const style = getComputedStyle(document.documentElement);
    for (const plot of plots) {
      const { data, layout } = resolved(specs[plot.dataset.figure], style);
      Plotly.react(plot, data, { ...layout, dragmode: false }, config);
    }
  }

  function drawInPrint(printing) {
    document.documentElement.classList.toggle("printing", printing);
    draw();
    for (const plot of plots) Plotly.Plots.resize(plot);
  }

  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  addEventListener("beforeprint", () => drawInPrint(true));
  addEventListener("afterprint", () => drawInPrint(false));
  document.documentElement.dataset.drawn = "true";
})();
