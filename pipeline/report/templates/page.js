"use strict";
(() => {
  const root = document.documentElement;
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const button = document.getElementById("theme");
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : dark.matches);
  const label = () => {
    button.textContent = isDark() ? "Light colours" : "Dark colours";
  };
  button.hidden = false;
  button.addEventListener("click", () => {
    root.dataset.theme = isDark() ? "light" : "dark";
    label();
  });
  dark.addEventListener("change", label);
  label();

  const keyOf = (row, column) => {
    const cell = row.cells[column];
    return cell.dataset.sort ?? cell.textContent.trim();
  };
  const numberIn = (text) => (/^[-+]?\d+(\.\d+)?(e[-+]?\d+)?( ?%|x .*)?$/.test(text) ? parseFloat(text) : NaN);
  const compare = (a, b) => {
    const difference = numberIn(a) - numberIn(b);
    return Number.isNaN(difference) ? a.localeCompare(b, undefined, { numeric: true }) : difference;
  };
  for (const table of document.querySelectorAll("table.sortable")) {
    const heads = [...table.tHead.rows[0].cells];
    heads.forEach((head, column) => {
      const control = document.createElement("button");
      control.type = "button";
      control.append(...head.childNodes);
      head.append(control);
      head.setAttribute("aria-sort", "none");
      control.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        for (const other of heads) other.setAttribute("aria-sort", "none");
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        const body = table.tBodies[0];
        const rows = [...body.rows];
        rows.sort((a, b) => (falling ? -1 : 1) * compare(keyOf(a, column), keyOf(b, column)));
        body.append(...rows);
      });
    });
  }

  const filters = document.getElementById("filters");
  if (filters) {
    const words = document.getElementById("filter-text");
    const state = document.getElementById("filter-state");
    const shown = document.getElementById("filter-count");
    const rows = [...document.querySelectorAll("#groups-table tbody tr")];
    const apply = () => {
      const wanted = words.value.trim().toLowerCase();
      let count = 0;
      for (const row of rows) {
        const fits = row.textContent.toLowerCase().includes(wanted);
        row.hidden = !(fits && (state.value === "all" || row.dataset.state === state.value));
        count += row.hidden ? 0 : 1;
      }
      shown.textContent = `${count} of ${rows.length} groups`;
    };
    filters.hidden = false;
    words.addEventListener("input", apply);
    state.addEventListener("input", apply);
    apply();
  }

  const details = [...document.querySelectorAll("details")];
  addEventListener("beforeprint", () => {
    for (const one of details) {
      one.dataset.wasOpen = one.open ? "yes" : "";
      one.open = true;
    }
  });
  addEventListener("afterprint", () => {
    for (const one of details) one.open = one.dataset.wasOpen === "yes";
  });
})();
