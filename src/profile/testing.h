// For tests and benchmarks only: where the published reference data lies.
#pragma once

#include <cstdlib>
#include <filesystem>
#include <string>

namespace tidepool::testing {

// The folder `name` of the reference data: under $TIDEPOOL_REFERENCE_DIR, else under ../shared/reference beside the project's
// root. Empty if it is not there; the caller skips then.
inline std::string ReferenceFolder(const std::string& name, const std::string& source_root) {
  const char* const root = std::getenv("TIDEPOOL_REFERENCE_DIR");
  const std::string path =
      (root != nullptr && *root != '\0' ? std::string(root) : source_root + "/../shared/reference") + "/" + name;
  std::error_code ignored;
  return std::filesystem::is_directory(path, ignored) ? path : "";
}

}  // namespace tidepool::testing
