// For tests of verbs: runs a command line in this process, with all verbs, and keeps what it prints.
#pragma once

#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "base/json.h"
#include "cli/command_line.h"

namespace tidepool::cli {

struct Outcome {
  int code = 0;
  std::string out, err;
  nlohmann::json json() const { return nlohmann::json::parse(out, nullptr, /*allow_exceptions=*/false); }
};

inline Outcome RunWords(const std::vector<std::string>& arguments) {
  VerbList verbs;
  AddAllVerbs(&verbs);
  ::testing::internal::CaptureStdout();
  ::testing::internal::CaptureStderr();
  Outcome outcome;
  outcome.code = RunCommandLine(arguments, verbs);
  outcome.out = ::testing::internal::GetCapturedStdout();
  outcome.err = ::testing::internal::GetCapturedStderr();
  return outcome;
}

}  // namespace tidepool::cli
