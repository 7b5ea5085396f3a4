// Small things that a page does for itself; the site works without them.

// What scrolls within the page can be reached by keyboard, and says what it is.
function reachable() {
  const kinds = [["div.highlight pre", "code"], [".table-wrapper", "table"], ["div.math", "formula"]];
  for (const [what, name] of kinds)
    for (const part of document.querySelectorAll(what))
      if (part.scrollWidth > part.clientWidth + 1) {
        part.tabIndex = 0;
        part.setAttribute("role", "group");
        part.setAttribute("aria-label", `${name}, scrolls sideways`);
      } else {
        part.removeAttribute("tabindex");
      }
}

// Search results with the promise of each page below its title (Sphinx would fetch the pages, which file:// forbids).
function promises() {
  const results = document.getElementById("search-results");
  if (!results || !window.LESA_PROMISES) return;
  const add = () => {
    for (const item of results.querySelectorAll("li:not([data-told])")) {
      item.dataset.told = "yes";
      const link = item.querySelector("a");
      const page = link.getAttribute("href").split(/[?#]/)[0].replace(/^(\.\/|\.\.\/)*/, "").replace(/\.html$/, "");
      const [chapter, promise] = window.LESA_PROMISES[page] || [];
      if (!promise) continue;
      if (chapter) link.insertAdjacentText("beforebegin", `${chapter} `);
      const line = document.createElement("p");
      line.className = "promise";
      line.textContent = promise;
      item.append(line);
    }
  };
  new MutationObserver(add).observe(results, {childList: true, subtree: true});
  add();
}

addEventListener("DOMContentLoaded", () => {
  for (const [what, name] of [[".sidebar-drawer", "All pages"], [".toc-drawer", "This page"]])
    document.querySelector(what)?.setAttribute("aria-label", name);
  reachable();
  promises();
  new MutationObserver(reachable).observe(document.documentElement, {attributeFilter: ["data-formulas"]});
});
addEventListener("load", reachable);
addEventListener("resize", reachable);
