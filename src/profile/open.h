// Finds a bundle by the name that a user gives, for example behind "emulated:".
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/status.h"
#include "profile/bundle.h"

namespace tidepool::profile {

inline constexpr char kDefaultDirectory[] = "profiles";

struct BundlePlace {
  std::string name;
  std::string path;  // empty: it comes with the program
};

// A name with a '/' is a path; else it is a directory of that name under `directory`, else a built-in bundle. NOT_FOUND names the
// nearest bundle there is.
StatusOr<BundlePlace> FindBundle(const std::string& name, const std::string& directory = kDefaultDirectory);
// Those under `directory`, then the built-in ones that none of them hides. A missing directory is an empty one.
StatusOr<std::vector<BundlePlace>> ListBundles(const std::string& directory = kDefaultDirectory);
StatusOr<Bundle> LoadBundle(const BundlePlace& place);

// Finds, reads and checks. FAILED_PRECONDITION lists what cannot be true (check.h).
StatusOr<std::shared_ptr<const Bundle>> OpenBundle(const std::string& name, const std::string& directory = kDefaultDirectory);

}  // namespace tidepool::profile
