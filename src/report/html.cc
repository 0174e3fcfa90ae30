#include "report/html.h"

#include <fmt/format.h>

#include <algorithm>

#include "base/fd.h"

namespace tidepool::report {
namespace {

// Length of the well-formed UTF-8 sequence at text[i], or 0.
size_t SequenceLength(std::string_view text, size_t i) {
  const auto byte = [&](size_t k) { return static_cast<unsigned char>(text[k]); };
  const unsigned char lead = byte(i);
  if (lead < 0x80) return 1;
  const size_t length = lead >= 0xC2 && lead <= 0xDF   ? 2
                        : lead >= 0xE0 && lead <= 0xEF ? 3
                        : lead >= 0xF0 && lead <= 0xF4 ? 4
                                                       : 0;
  if (length == 0 || i + length > text.size()) return 0;
  for (size_t k = 1; k < length; ++k) {
    if ((byte(i + k) & 0xC0) != 0x80) return 0;
  }
  const unsigned char second = byte(i + 1);
  const bool overlong = (lead == 0xE0 && second < 0xA0) || (lead == 0xF0 && second < 0x90);
  const bool outside = (lead == 0xED && second > 0x9F) || (lead == 0xF4 && second > 0x8F);
  return overlong || outside ? 0 : length;
}

constexpr std::string_view kStyle = R"css(
:root{color-scheme:light dark;--bg:#fbfbf9;--card:#fff;--fg:#1d2125;--dim:#667078;--line:#dfe2e3;--grid:#e9ebec;--bad:#c0341d;--good:#15795f;
--c0:#1f77b4;--c1:#e8833a;--c2:#2a9d76;--c3:#c94f7c;--c4:#7b62b8;--c5:#b08f26;--c6:#4aa3c7;--c7:#8a5a44;--c8:#7d8b33;--c9:#9aa3a8}
@media (prefers-color-scheme:dark){:root{--bg:#14181b;--card:#1b2024;--fg:#e6e9ea;--dim:#98a2a8;--line:#31383d;--grid:#2a3035;--bad:#ff7b66;--good:#4fd1a8;
--c0:#5aa9e6;--c1:#f4a261;--c2:#4cc79b;--c3:#ec7fa6;--c4:#a992e0;--c5:#d8b94a;--c6:#7fcbe6;--c7:#bf8f78;--c8:#b3c15a;--c9:#77828a}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:1.7rem;line-height:1.2;margin:0 0 4px}h2{font-size:1.15rem;margin:34px 0 8px}p{margin:8px 0;max-width:80ch}
.sub{color:var(--dim);margin:0 0 18px}
.figs{display:grid;grid-template-columns:repeat(auto-fit,minmax(150px,1fr));gap:12px;margin:18px 0}
.fig{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 14px}
.fig b{display:block;font-size:1.55rem;line-height:1.15;font-weight:650;font-variant-numeric:tabular-nums}
.fig span{display:block;font-size:.85rem}.fig i{display:block;color:var(--dim);font-size:.78rem;font-style:normal}
.fig.bad b{color:var(--bad)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,500px),1fr));gap:16px;margin:14px 0}
.wide{grid-column:1/-1}
figure.plot{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 12px 6px;position:relative;min-width:0}
figure.plot figcaption b{font-weight:600}figure.plot .note{display:block;color:var(--dim);font-size:.82rem}
.legend{display:flex;flex-wrap:wrap;gap:2px 14px;font-size:.8rem;color:var(--dim);margin:4px 0 2px}
.legend span{display:inline-flex;align-items:center;gap:5px;overflow-wrap:anywhere}
.legend i{flex:none;width:11px;height:11px;border-radius:3px;background:var(--k)}
.legend i.mark{height:0;border-top:2px dashed var(--bad);border-radius:0;background:none}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:11.5px;fill:var(--dim);font-variant-numeric:tabular-nums}
svg .g{stroke:var(--grid);stroke-width:1}svg .ax{stroke:var(--dim);stroke-width:1}
svg .l{fill:none;stroke:var(--k);stroke-width:1.8;stroke-linejoin:round}svg .a{fill:var(--k);fill-opacity:.82}
svg .d{fill:var(--k);fill-opacity:.5}svg .dash{stroke-dasharray:5 4}
svg .m{stroke:var(--bad);stroke-width:1.4;stroke-dasharray:6 4;fill:none}svg text.mt{fill:var(--bad)}
svg .cur{stroke:var(--dim);stroke-width:1;stroke-dasharray:2 3;visibility:hidden;pointer-events:none}
.c0{--k:var(--c0)}.c1{--k:var(--c1)}.c2{--k:var(--c2)}.c3{--k:var(--c3)}.c4{--k:var(--c4)}.c5{--k:var(--c5)}.c6{--k:var(--c6)}.c7{--k:var(--c7)}.c8{--k:var(--c8)}.c9{--k:var(--c9)}
.tip{position:absolute;pointer-events:none;background:var(--card);border:1px solid var(--line);border-radius:8px;padding:6px 9px;font-size:.78rem;line-height:1.35;box-shadow:0 3px 14px #0003;visibility:hidden;white-space:nowrap;z-index:2}
.tip i{display:inline-block;width:9px;height:9px;border-radius:2px;background:var(--k);margin-right:5px}
.scroll{overflow-x:auto;margin:10px 0;background:var(--card);border:1px solid var(--line);border-radius:10px}
table{border-collapse:collapse;width:100%;font-size:.9rem}caption{caption-side:top;text-align:left;color:var(--dim);font-size:.85rem;padding:10px 12px 2px}
th,td{padding:6px 9px;text-align:left;border-bottom:1px solid var(--line);white-space:nowrap}tr:last-child td{border-bottom:0}
th{font-weight:600;color:var(--dim)}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}td.s{font-weight:650;color:var(--good)}td.bad{color:var(--bad);font-weight:650}
details{margin:10px 0}summary{cursor:pointer}pre{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px;overflow:auto;font-size:.8rem}
@media (max-width:640px){main{padding:18px 10px 40px}svg text{font-size:18px}.wide svg text{font-size:24px}th,td{padding:5px 8px}.figs{grid-template-columns:repeat(2,1fr)}.fig b{font-size:1.25rem}}
@media print{figure.plot,.fig,.scroll{break-inside:avoid}}
)css";

// Shows the values nearest to the pointer. A plot without script still shows everything but this.
constexpr std::string_view kScript = R"js(
document.querySelectorAll('figure.plot svg[data-hover]').forEach(function(svg){
  var d=JSON.parse(svg.dataset.hover),fig=svg.parentNode,cur=svg.querySelector('.cur'),tip=document.createElement('div');
  tip.className='tip';fig.appendChild(tip);
  function num(v,a){return (+(v/a.d).toPrecision(4)).toString()+(a.u?' '+a.u:'')}
  function hide(){tip.style.visibility='hidden';cur.style.visibility='hidden'}
  svg.addEventListener('pointermove',function(e){
    var r=svg.getBoundingClientRect(),k=r.width/d.w,px=(e.clientX-r.left)/k,best=null;
    if(px<d.l-4||px>d.r+4){hide();return}
    var t=(px-d.l)/(d.r-d.l),x=d.x.g?Math.pow(10,d.x.a+t*(d.x.b-d.x.a)):d.x.a+t*(d.x.b-d.x.a);
    var near=d.s.map(function(s){
      var lo=0,hi=s.x.length-1;if(hi<0)return null;
      while(lo<hi){var m=(lo+hi)>>1;if(s.x[m]<x)lo=m+1;else hi=m}
      if(lo>0&&Math.abs(s.x[lo-1]-x)<Math.abs(s.x[lo]-x))lo--;
      if(best===null||Math.abs(s.x[lo]-x)<Math.abs(best-x))best=s.x[lo];return lo});
    if(best===null)return;
    tip.textContent='';var h=document.createElement('b');h.textContent=(d.x.n?d.x.n+' ':'')+num(best,d.x);tip.appendChild(h);
    d.s.forEach(function(s,i){if(near[i]===null||s.y[near[i]]===null||(d.k&&!s.y[near[i]]))return;var row=document.createElement('div'),b=document.createElement('i');
      b.className='c'+s.c;row.appendChild(b);row.appendChild(document.createTextNode(s.n+'  '+num(s.y[near[i]],d.y)));tip.appendChild(row)});
    var u=((d.x.g?Math.log10(best):best)-d.x.a)/(d.x.b-d.x.a),cx=d.l+u*(d.r-d.l);
    cur.setAttribute('x1',cx);cur.setAttribute('x2',cx);cur.style.visibility='visible';tip.style.visibility='visible';
    var f=fig.getBoundingClientRect(),left=r.left-f.left+cx*k+12;
    if(left+tip.offsetWidth>f.width)left=Math.max(0,left-tip.offsetWidth-24);
    tip.style.left=left+'px';tip.style.top=(r.top-f.top+12)+'px';
  });
  svg.addEventListener('pointerleave',hide);
});
)js";

}  // namespace

std::string EscapeHtml(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    const size_t length = SequenceLength(text, i);
    if (length == 0) {
      out += "\xEF\xBF\xBD";
      ++i;
      continue;
    }
    if (length > 1) {
      out.append(text, i, length);
      i += length;
      continue;
    }
    const char c = text[i++];
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&quot;"; break;
      case '\'': out += "&#39;"; break;
      default: out += (static_cast<unsigned char>(c) < 0x20 && c != '\n' && c != '\t') || c == 0x7F ? ' ' : c;
    }
  }
  return out;
}

Page::Page(std::string title, std::string subtitle) : title_(std::move(title)), subtitle_(std::move(subtitle)) {}

void Page::CloseGrid() {
  if (grid_open_) body_ += "</div>\n";
  grid_open_ = false;
}

void Page::AddHeading(std::string_view title) {
  CloseGrid();
  body_ += fmt::format("<h2>{}</h2>\n", EscapeHtml(title));
}

void Page::AddParagraph(std::string_view text) {
  CloseGrid();
  body_ += fmt::format("<p>{}</p>\n", EscapeHtml(text));
}

void Page::AddFigures(const std::vector<Figure>& figures) {
  CloseGrid();
  body_ += "<div class=\"figs\">";
  for (const Figure& figure : figures) {
    body_ += fmt::format("<div class=\"fig{}\"><b>{}</b><span>{}</span><i>{}</i></div>", figure.bad ? " bad" : "",
                         EscapeHtml(figure.value), EscapeHtml(figure.label), EscapeHtml(figure.note));
  }
  body_ += "</div>\n";
}

void Page::AddTable(const Table& table) {
  CloseGrid();
  body_ += "<div class=\"scroll\"><table>";
  if (!table.caption.empty()) body_ += fmt::format("<caption>{}</caption>", EscapeHtml(table.caption));
  const auto is_number = [&](size_t column) {
    return std::any_of(table.rows.begin(), table.rows.end(),
                       [column](const std::vector<Cell>& row) { return column < row.size() && row[column].number; });
  };
  body_ += "<thead><tr>";
  for (size_t i = 0; i < table.columns.size(); ++i) {
    body_ += fmt::format("<th{}>{}</th>", is_number(i) ? " class=\"n\"" : "", EscapeHtml(table.columns[i]));
  }
  body_ += "</tr></thead><tbody>\n";
  for (const std::vector<Cell>& row : table.rows) {
    body_ += "<tr>";
    for (size_t i = 0; i < std::max(row.size(), table.columns.size()); ++i) {
      const Cell cell = i < row.size() ? row[i] : Cell{};
      std::string classes = cell.number ? "n" : "";
      if (cell.strong) classes += classes.empty() ? "s" : " s";
      if (cell.bad) classes += classes.empty() ? "bad" : " bad";
      body_ += classes.empty() ? "<td>" : fmt::format("<td class=\"{}\">", classes);
      body_ += EscapeHtml(cell.text) + "</td>";
    }
    body_ += "</tr>\n";
  }
  body_ += "</tbody></table></div>\n";
}

void Page::AddPlot(const std::string& plot, bool wide) {
  if (!grid_open_) body_ += "<div class=\"grid\">\n";
  grid_open_ = true;
  body_ += fmt::format("<div{}>{}</div>\n", wide ? " class=\"wide\"" : "", plot);
}

void Page::AddDetails(std::string_view title, std::string_view text) {
  CloseGrid();
  body_ += fmt::format("<details><summary>{}</summary><pre>{}</pre></details>\n", EscapeHtml(title), EscapeHtml(text));
}

std::string Page::Render() const {
  return fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">"
      "<meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">"
      "<title>{0}</title><style>{2}</style></head>\n<body><main><h1>{0}</h1><p class=\"sub\">{1}</p>\n{3}{4}</main>"
      "<script>{5}</script></body></html>\n",
      EscapeHtml(title_), EscapeHtml(subtitle_), kStyle, body_, grid_open_ ? "</div>\n" : "", kScript);
}

Status Page::Write(const std::string& path) const { return WriteFileAtomically(path, Render()); }

}  // namespace tidepool::report
