// Shell completion scripts, made from the verbs and their option tables.
#pragma once

#include <string>
#include <string_view>

#include "base/status.h"
#include "cli/verb.h"

namespace tidepool::cli {

// The script for `shell`: bash, zsh or fish. INVALID_ARGUMENT for others.
StatusOr<std::string> CompletionScript(std::string_view shell, const VerbList& verbs);

}  // namespace tidepool::cli
