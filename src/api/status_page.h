// The page at GET /: plain HTML without scripts, readable in a text browser.
#pragma once

#include <string>

#include "api/front_end.h"

namespace tidepool::api {

std::string RenderStatusPage(FrontEnd* front_end);

}  // namespace tidepool::api
