"use strict";
// How far the models of peers without a server are apart.

(() => {
  const { $, setText, known, number, plural } = Base;
  const { panel, tableOf } = Panels;

  const judged = (run) => run.rounds.filter((r) => known(r.consensus));

  panel("consensus", (run) => judged(run).length > 0, (section) => {
    const chart = new Lines($(".consensus", section), { text: (v) => number(v, 3), zero: true, label: "Distance to the mean model over rounds" });
    const fillTable = tableOf(section, (run) => ({
      head: ["Round", "Distance to the mean model"],
      rows: judged(run).reverse().map((r) => [String(r.round), number(r.consensus, 4)]),
    }));

    return (run) => {
      const rounds = judged(run);
      chart.set(rounds.map((r) => r.round), [{ label: "root mean squared distance", color: "--s-global", values: rounds.map((r) => r.consensus), width: 2 }]);
      const last = rounds[rounds.length - 1];
      const text = `After round ${last.round} peers’ models are ${number(last.consensus, 3)} from their mean.`;
      setText($(".note", section), text);
      chart.plot.setAttribute("aria-label", `Distance to the mean model over ${plural(rounds.length, "evaluation")}. ${text}`);
      fillTable(run);
    };
  });
})();
