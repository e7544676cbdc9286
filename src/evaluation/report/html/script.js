// Niceties only: the page says everything without this.
(function () {
  "use strict";
  var doc = document;
  function all(selector, root) { return Array.prototype.slice.call((root || doc).querySelectorAll(selector)); }
  function make(name, className, text) {
    var element = doc.createElement(name);
    if (className) element.className = className;
    if (text) element.textContent = text;
    return element;
  }

  // The legend's entries switch their lines.
  all(".legend .key").forEach(function (key) {
    var button = make("button", "key");
    button.type = "button";
    while (key.firstChild) button.appendChild(key.firstChild);
    button.setAttribute("aria-pressed", "true");
    var ink = key.getAttribute("data-ink");
    button.addEventListener("click", function () {
      var show = button.getAttribute("aria-pressed") === "false";
      button.setAttribute("aria-pressed", String(show));
      all("figure.chart g.line." + ink).forEach(function (line) { line.style.display = show ? "" : "none"; });
    });
    key.parentNode.replaceChild(button, key);
  });

  // One trajectory open at a time is enough to begin with; all of them on paper.
  var trajectories = all("details.trajectory");
  trajectories.forEach(function (details, i) { if (i > 0) details.open = false; });
  window.addEventListener("beforeprint", function () { all("details").forEach(function (details) { details.open = true; }); });

  // A joint can be chosen.
  trajectories.forEach(function (details) {
    var charts = all("figure.chart", details);
    if (charts.length < 2) return;
    var label = make("label", "chooser", "Show ");
    var select = make("select");
    select.appendChild(make("option", "", "all dimensions"));
    charts.forEach(function (chart) { select.appendChild(make("option", "", chart.getAttribute("data-choice"))); });
    select.addEventListener("change", function () {
      charts.forEach(function (chart, i) {
        var chosen = select.selectedIndex;
        chart.style.display = chosen === 0 || chosen === i + 1 ? "" : "none";
        chart.classList.toggle("solo", chosen === i + 1);
      });
    });
    label.appendChild(select);
    details.insertBefore(label, details.children[1] || null);
  });

  // The values under the pointer.
  function numbers(text) { return text.split(" ").map(Number); }
  function value(axis, place) {
    if (axis[2] === 1) return axis[0] * Math.pow(axis[1] / axis[0], place);
    return axis[0] + (axis[1] - axis[0]) * place;
  }
  function show(number) {
    var size = Math.abs(number);
    if (size !== 0 && (size < 0.001 || size >= 1e5)) return number.toExponential(2);
    return String(Number(number.toPrecision(4)));
  }
  function points(line) {
    if (!line.places) {
      line.places = [];
      all("polyline", line).forEach(function (part) {
        part.getAttribute("points").split(" ").forEach(function (pair) { line.places.push(pair.split(",").map(Number)); });
      });
      all("circle", line).forEach(function (dot) {
        line.places.push([Number(dot.getAttribute("cx")), Number(dot.getAttribute("cy"))]);
      });
    }
    return line.places;
  }
  all("figure.chart").forEach(function (figure) {
    var svg = figure.querySelector("svg");
    var x = numbers(svg.getAttribute("data-x")), y = numbers(svg.getAttribute("data-y"));
    var plot = numbers(svg.getAttribute("data-plot"));
    var readout, cursor;
    function clear() {
      if (readout) { readout.remove(); cursor.remove(); readout = null; }
    }
    svg.addEventListener("pointermove", function (event) {
      var box = svg.getBoundingClientRect();
      var at = (event.clientX - box.left) * svg.viewBox.baseVal.width / box.width;
      var lines = all("g.line", svg).filter(function (line) { return line.style.display !== "none"; });
      var found = lines.map(function (line) {
        var best = null;
        points(line).forEach(function (place) {
          if (!best || Math.abs(place[0] - at) < Math.abs(best[0] - at)) best = place;
        });
        return best && Math.abs(best[0] - at) < 14 ? { label: line.getAttribute("data-label"), ink: line.getAttribute("class"), place: best } : null;
      }).filter(Boolean);
      if (!found.length) { clear(); return; }
      if (!readout) {
        readout = make("div", "readout");
        figure.appendChild(readout);
        cursor = doc.createElementNS(svg.namespaceURI, "line");
        cursor.setAttribute("class", "cursor");
        cursor.setAttribute("y1", plot[1]);
        cursor.setAttribute("y2", plot[3]);
        svg.appendChild(cursor);
      }
      var nearest = found[0].place[0];
      cursor.setAttribute("x1", nearest);
      cursor.setAttribute("x2", nearest);
      readout.textContent = "";
      readout.appendChild(make("div", "", show(value(x, (nearest - plot[0]) / (plot[2] - plot[0])))));
      found.forEach(function (entry) {
        var row = make("div");
        var mark = make("b", "", "\u25cf ");
        mark.style.color = "var(--" + entry.ink.split(" ")[1] + ")";
        row.appendChild(mark);
        row.appendChild(doc.createTextNode(entry.label + " " + show(value(y, (plot[3] - entry.place[1]) / (plot[3] - plot[1])))));
        readout.appendChild(row);
      });
      readout.style.left = at > (plot[0] + plot[2]) / 2 ? "8px" : "auto";
      readout.style.right = at > (plot[0] + plot[2]) / 2 ? "auto" : "8px";
    });
    svg.addEventListener("pointerleave", clear);
  });
})();
