#include "base/json.h"
#include "cli/loader_bench.h"

namespace tidepool::cli {

std::string ToJson(const LoaderBenchOptions& options, const LoaderBenchResult& result) {
  using Json = nlohmann::ordered_json;
  const auto pictures = [](const std::vector<PictureRate>& rates, const char* threads) {
    Json list = Json::array();
    for (const PictureRate& rate : rates) {
      list.push_back(
          {{"what", rate.what}, {threads, rate.threads}, {"images_per_core_s", rate.per_core_s}, {"images_per_s", rate.per_s}});
    }
    return list;
  };
  Json json = {{"cores", result.cores},
               {"pictures", {{"count", result.pictures}, {"mean_bytes", result.mean_bytes}}},
               {"work",
                {{"image_size", options.image_size},
                 {"min_area", options.min_area},
                 {"batch", options.batch},
                 {"seconds", options.seconds},
                 {"rounds", options.rounds},
                 {"cache", options.wrap.cache},
                 {"cache_bytes", options.wrap.cache_bytes},
                 {"storage", options.wrap.storage}}},
               {"ours", pictures(result.ours, "threads")}};
  if (result.torch_absent.empty()) {
    json["torch"] = {{"versions", result.torch_versions}, {"runs", pictures(result.torch, "workers")}};
  } else {
    json["torch"] = {{"absent", result.torch_absent}};
  }
  json["disk"] = Json::array();
  for (const DiskRate& rate : result.disk) json["disk"].push_back({{"what", rate.what}, {"bytes_per_s", rate.bytes_per_s}});
  if (!result.fio_absent.empty()) json["fio"] = {{"absent", result.fio_absent}};
  if (result.cache.reads() > 0) {
    json["cache"] = {{"hits", result.cache.hits},
                     {"misses", result.cache.misses},
                     {"joined", result.cache.joined},
                     {"evicted", result.cache.evicted},
                     {"hit_share", result.cache.hit_share()}};
  }
  json["ratios"] = result.ratios;
  return json.dump(2, ' ', false, Json::error_handler_t::replace);
}

std::string ToText(const LoaderBenchResult& result) {
  std::string text =
      fmt::format("{} pictures of {} on average, {} cores\n\n", result.pictures, FormatBytes(result.mean_bytes), result.cores);
  text += fmt::format("{:<34}{:>8}{:>18}{:>12}\n", "", "threads", "images/s per core", "images/s");
  for (const PictureRate& rate : result.ours) {
    text += fmt::format("{:<34}{:>8}{:>18.0f}{:>12.0f}\n", rate.what, rate.threads, rate.per_core_s, rate.per_s);
  }
  for (const PictureRate& rate : result.torch) {
    text += fmt::format("{:<34}{:>8}{:>18.0f}{:>12.0f}\n", "torch " + rate.what, rate.threads, rate.per_core_s, rate.per_s);
  }
  text += result.torch_absent.empty() ? fmt::format("({}; threads of torch are worker processes)\n", result.torch_versions)
                                      : fmt::format("PyTorch is absent: {}\n", result.torch_absent);
  if (result.cache.reads() > 0) {
    text += fmt::format("our loader's cache: {:.1f} % hits of {} reads, cold starts included\n", 100 * result.cache.hit_share(),
                        result.cache.reads());
  }
  if (!result.disk.empty()) text += "\n";
  for (const DiskRate& rate : result.disk) text += fmt::format("{:<34}{:>22.0f} MB/s\n", rate.what, rate.bytes_per_s / 1e6);
  if (!result.fio_absent.empty()) text += fmt::format("fio is absent: {}\n", result.fio_absent);
  text += "\n";
  for (const auto& [name, ratio] : result.ratios) text += fmt::format("{:<56}{:>10.2f}\n", name, ratio);
  if (!text.empty()) text.pop_back();
  return text;
}

}  // namespace tidepool::cli
