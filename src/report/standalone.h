// Plots as an image file: SVG that viewers other than a browser with our page can show.
#pragma once

#include <string>
#include <vector>

namespace tidepool::report {

// One SVG document with the plots (of plot.h) below each other, each with its title, note and legend. Light colours, no script.
std::string StandaloneSvg(const std::vector<std::string>& plots);

// The style of such a document, for drawings that are not plots: texts, and the ten colours as fill classes f0 ... f9.
std::string StandaloneStyle();

}  // namespace tidepool::report
