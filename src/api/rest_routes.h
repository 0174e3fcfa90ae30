// The REST form of the Open Inference Protocol, model repository control, metrics and the plain status page. docs/api.md lists
// the routes.
#pragma once

#include "api/front_end.h"
#include "api/http.h"

namespace tidepool::api {

// `front_end` outlives the router.
Router MakeRestRouter(FrontEnd* front_end);
// Only GET /metrics.
Router MakeMetricsRouter(FrontEnd* front_end);

}  // namespace tidepool::api
