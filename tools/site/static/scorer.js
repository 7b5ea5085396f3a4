// How a search puts in order what it found: as Sphinx does, but the chapters of the course before what is looked up.
var Scorer = {
  score: ([page, , , , score]) => score + (/^\d_/.test(page) ? 10 : 0),
  objNameMatch: 11,
  objPartialMatch: 6,
  objPrio: {0: 15, 1: 5, 2: -5},
  objPrioDefault: 0,
  title: 15,
  partialTitle: 7,
  term: 5,
  partialTerm: 2,
};
