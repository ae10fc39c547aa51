// The page of `rl compare`: charts of the settings over each other, and the tables below. It uses `window.turnwise`.

(async () => {
  const make = (name, className, text) => {
    const element = document.createElement(name);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  await new Promise((ready) => {
    if (document.readyState !== "loading") ready();
    else document.addEventListener("DOMContentLoaded", ready);
  });
  const page = document.getElementById("page");
  const content = await window.turnwise.readJson("comparison");

  page.append(make("h1", "", document.title));
  const key = make("div", "key");
  for (const setting of content.settings) {
    const entry = make("span");
    const mark = make("i");
    mark.style.background = setting.color;
    const runs = setting.runs > 1 ? ` (mean and range of ${setting.runs} runs)` : "";
    entry.append(mark, setting.label + runs);
    key.append(entry);
  }
  page.append(key);

  const charts = make("div", "charts");
  page.append(charts);
  for (const chart of content.charts) {
    const box = make("div", "chart");
    const target = make("div");
    box.append(make("h2", "", chart.title), target);
    charts.append(box);
    window.turnwise.drawLines(target, { x: chart.x, lines: chart.lines, height: 210, sync: "steps" });
  }

  for (const table of content.tables) {
    const element = make("table");
    const head = make("tr");
    table.columns.forEach((column) => head.append(make("th", "", column)));
    element.append(head);
    for (const row of table.rows) {
      const line = make("tr");
      row.forEach((value) => line.append(make("td", "", value)));
      element.append(line);
    }
    const box = make("div", "table");
    box.append(element);
    page.append(make("h2", "", table.title), box);
  }
  content.notes.forEach((note) => page.append(make("p", "", note)));
})();
