#include "profile/open.h"

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <system_error>

#include "base/text.h"
#include "profile/builtin.h"
#include "profile/bundle_io.h"
#include "profile/check.h"

namespace tidepool::profile {
namespace {

namespace fs = std::filesystem;

bool IsBundle(const fs::path& path) {
  std::error_code error;
  return fs::exists(path / "manifest.json", error);
}

}  // namespace

StatusOr<std::vector<BundlePlace>> ListBundles(const std::string& directory) {
  std::vector<BundlePlace> places;
  std::error_code error;
  fs::directory_iterator entries(directory, error);
  if (error && error != std::errc::no_such_file_or_directory)
    return ErrnoError(error.value(), fmt::format("listing '{}'", directory));
  for (; !error && entries != fs::directory_iterator(); entries.increment(error)) {
    const std::string name = entries->path().filename().string();
    if (CheckName("bundle", name).ok() && IsBundle(entries->path())) places.push_back({name, entries->path().string()});
  }
  if (error && error != std::errc::no_such_file_or_directory)
    return ErrnoError(error.value(), fmt::format("listing '{}'", directory));
  std::sort(places.begin(), places.end(), [](const BundlePlace& a, const BundlePlace& b) { return a.name < b.name; });
  const size_t own = places.size();
  for (const Bundle& bundle : BuiltinBundles()) {
    const bool hidden = std::any_of(places.begin(), places.begin() + static_cast<std::ptrdiff_t>(own),
                                    [&](const BundlePlace& place) { return place.name == bundle.manifest.name; });
    if (!hidden) places.push_back({bundle.manifest.name, ""});
  }
  return places;
}

StatusOr<BundlePlace> FindBundle(const std::string& name, const std::string& directory) {
  if (name.find('/') != std::string::npos) {
    std::error_code error;
    if (!fs::exists(name, error)) return NotFound("there is no bundle '{}'", name);
    std::string file = fs::path(name).filename().string();
    if (file.empty()) file = fs::path(name).parent_path().filename().string();
    return BundlePlace{file, name};
  }
  TIDEPOOL_RETURN_IF_ERROR(CheckName("profile", name));
  TIDEPOOL_ASSIGN_OR_RETURN(const std::vector<BundlePlace> places, ListBundles(directory));
  std::vector<std::string> names;
  for (const BundlePlace& place : places) {
    if (place.name == name) return place;
    names.push_back(place.name);
  }
  const std::string nearest = NearestName(name, names);
  return NotFound("there is no profile '{}' in '{}' or built in; {}", name, directory,
                  nearest.empty() ? "there are: " + JoinText(names, ", ") : fmt::format("did you mean '{}'?", nearest));
}

StatusOr<Bundle> LoadBundle(const BundlePlace& place) {
  if (!place.path.empty()) return ReadBundle(place.path);
  const Bundle* builtin = FindBuiltin(place.name);
  if (builtin == nullptr) return NotFound("there is no built-in profile '{}'", place.name);
  return *builtin;
}

StatusOr<std::shared_ptr<const Bundle>> OpenBundle(const std::string& name, const std::string& directory) {
  TIDEPOOL_ASSIGN_OR_RETURN(const BundlePlace place, FindBundle(name, directory));
  TIDEPOOL_ASSIGN_OR_RETURN(Bundle bundle, LoadBundle(place));
  TIDEPOOL_RETURN_IF_ERROR(ToStatus(Check(bundle), name));
  return std::make_shared<const Bundle>(std::move(bundle));
}

}  // namespace tidepool::profile
