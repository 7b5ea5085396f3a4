// MathJax 2, from this folder: nothing is asked of a network, nothing to click or to tab through.
window.MathJax = {
  tex2jax: {inlineMath: [["\\(", "\\)"]], displayMath: [["\\[", "\\]"]], processEscapes: false,
    ignoreClass: "document|cell_input|cell_output", processClass: "math"},
  TeX: {extensions: ["AMSmath.js", "AMSsymbols.js", "noUndefined.js", "color.js"]},
  "HTML-CSS": {availableFonts: [], preferredFont: null, webFont: "STIX-Web", imageFont: null, linebreaks: {automatic: true, width: "container"},
    minScaleAdjust: 90},
  showMathMenu: false,
  menuSettings: {inTabOrder: false},
  showProcessingMessages: false,
  messageStyle: "none",
  AuthorInit() {
    MathJax.Hub.Register.StartupHook("End", () => { document.documentElement.dataset.formulas = "drawn"; });
  },
};
