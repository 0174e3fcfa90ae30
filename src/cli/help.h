// Help texts, all made from the verbs and their option tables.
#pragma once

#include <string>

#include "base/options.h"
#include "cli/verb.h"

namespace tidepool::cli {

// `tidepool --help`: one line per verb; with `all`, the flags that every verb takes too.
std::string RootHelp(const VerbList& verbs, bool all);
// `tidepool model --help`: the verbs that start with `group`.
std::string GroupHelp(const VerbList& verbs, const std::string& group);
// `tidepool up --help`; with `all`, advanced options, configuration keys and the flags that every verb takes.
std::string VerbHelp(Verb* verb, const OptionTable& table, bool all);

// "MODEL", "[FILE]", "MODEL..."
std::string PositionalUsage(const Positional& positional);

}  // namespace tidepool::cli
