"use strict";
// What the sections share: data, colours, charts, choices. Texts of files are set as textContent,
// or go through `label` into charts, which read a few tags.
const DATA = JSON.parse(document.getElementById("data").textContent);
const STARTS = new Map();
const CHARTS = new Map();
const WAITING = new Set();
// Milliseconds after which what waits runs all the same.
const IDLE_TIMEOUT = 5000;
const VIRIDIS = ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"];
const PAPER_WIDTH = 660;
const BELOW_ABOVE = [[0, "#e69138"], [0.4999, "#fbe5cd"], [0.5001, "#e3dcee"], [1, "#542788"]];

const byId = (id) => document.getElementById(id);
const style = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function label(text) {
  return String(text).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
}

// Whole numbers in full: ranks and lengths are told apart by every digit.
function shown(value, digits = 4) {
  if (typeof value !== "number") return "";
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(digits)));
}

function axis(title, more = {}) {
  return { title: { text: title }, gridcolor: style("--line"), zeroline: false, automargin: true, ...more };
}

// Marks of a logarithmic axis over whole numbers: the values that occur, thinned.
function marks(values, most = 9) {
  const distinct = [...new Set(values.filter((value) => value > 0))].sort((a, b) => a - b);
  const step = Math.max(1, Math.ceil(distinct.length / most));
  const kept = distinct.filter((_, index) => index % step === 0);
  return { type: "log", tickvals: kept, ticktext: kept.map((value) => shown(value, 3)) };
}

// Marks of a logarithmic axis over any numbers, in full: as coarse as leaves three between them.
function decades(values) {
  const positive = values.filter((value) => value > 0);
  const low = Math.min(...positive);
  const high = Math.max(...positive);
  const isEnough = (ticks) => ticks.filter((tick) => low <= tick && tick <= high).length >= 3;
  const [coarse, fine] = [[1, 2, 5], [1, 1.5, 2, 3, 4, 5, 6, 8]].map(inEveryDecade);
  // Around a single value the axis reaches over two decades.
  const isOne = !(low < high);
  const tickvals = isOne ? coarse : [coarse, fine].find(isEnough) ?? evenMarks(low, high);
  return { type: "log", tickvals, ticktext: tickvals.map((value) => shown(value, 6)) };
}

function inEveryDecade(digits) {
  return Array.from({ length: 12 }, (_, index) => digits.map((digit) => Number(`${digit}e${index - 5}`))).flat();
}

// About four steps between two numbers that are close, and as many beyond either of them.
function evenMarks(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * [1, 2, 5, 10].find((digit) => digit * power >= rough * 0.999);
  const first = Math.ceil((2 * low - high) / step);
  const last = Math.floor((2 * high - low) / step);
  const ticks = Array.from({ length: last - first + 1 }, (_, index) => Number(((first + index) * step).toPrecision(6)));
  return ticks.filter((tick) => tick > 0);
}

function draw(id, make) {
  CHARTS.set(id, make);
  const { traces, layout } = make();
  const base = {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
    font: { color: style("--ink"), size: 12 }, margin: { l: 55, r: 15, t: 30, b: 45 },
    modebar: { bgcolor: "rgba(0,0,0,0)", color: style("--ink") },
    hoverlabel: { align: "left" }, legend: { orientation: "h", y: -0.2 },
  };
  // While printing the width of the paper, else that of the screen.
  const isPrinting = document.documentElement.classList.contains("printing");
  const width = isPrinting ? { autosize: false, width: PAPER_WIDTH } : { autosize: true };
  const settings = { responsive: true, displaylogo: false };
  return Plotly.react(byId(id), traces, { ...base, ...width, ...layout }, settings);
}

// What may wait until all else is on the screen; asked for twice it runs once.
function whenIdle(id, run) {
  if (WAITING.has(id)) return;
  WAITING.add(id);
  const start = () => { WAITING.delete(id); run(); };
  if (window.requestIdleCallback) requestIdleCallback(start, { timeout: IDLE_TIMEOUT });
  else setTimeout(start, 50);
}

function isDark() {
  const theme = document.documentElement.dataset.theme;
  return (theme ?? (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
}

// Between two colours of a scale, place from 0 to 1.
function between(scale, place) {
  const at = place * (scale.length - 1);
  const low = Math.min(Math.floor(at), scale.length - 2);
  const part = (hex, k) => parseInt(hex.slice(1 + 2 * k, 3 + 2 * k), 16);
  const mixed = [0, 1, 2].map((k) => Math.round(part(scale[low], k) + (at - low) * (part(scale[low + 1], k) - part(scale[low], k))));
  return `rgb(${mixed.join(",")})`;
}

// Without the end of viridis that the background hides.
function rankColour(index, count) {
  const scale = isDark() ? VIRIDIS.slice(2) : VIRIDIS.slice(0, -1);
  return between(scale, count > 1 ? index / (count - 1) : 0);
}

// A choice among groups or runs; without one the first is shown.
function chosen(id) {
  const element = byId(id);
  return element ? Number(element.value) : 0;
}

function onChoice(id, show) {
  const element = byId(id);
  if (element) element.addEventListener("change", show);
}

function element(name, text, className = "") {
  const made = document.createElement(name);
  made.textContent = text;
  if (className) made.className = className;
  return made;
}

function row(values, cell = "td") {
  const made = document.createElement("tr");
  for (const value of values) made.append(element(cell, typeof value === "number" ? shown(value) : value ?? ""));
  return made;
}
