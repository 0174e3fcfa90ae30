#include "cli/doctor.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "base/json.h"
#include "base/units.h"

namespace tidepool::cli {
namespace {

using ::testing::HasSubstr;

MachineFacts GoodMachine() {
  MachineFacts facts;
  facts.kernel = "6.1.0";
  facts.blas_library = "/usr/lib/x86_64-linux-gnu/openblas-pthread/libblas.so.3";
  facts.cores = 8;
  facts.load_average = 0.1;
  facts.memory_total_bytes = 32 * kGiB;
  facts.memory_available_bytes = 30 * kGiB;
  facts.memlock_bytes = 16 * kGiB;
  facts.open_files = 1 << 20;
  facts.shm_free_bytes = 16 * kGiB;
  facts.memfd = facts.pidfd = true;
  facts.overcommit = 0;
  facts.huge_pages = "madvise";
  facts.clock_source = "tsc";
  facts.idle_class_entered = facts.idle_class_left = true;
  facts.worker_binary = true;
  return facts;
}

Finding Find(const MachineFacts& facts, const std::string& name) {
  for (const Finding& finding : Diagnose(facts)) {
    if (finding.name == name) return finding;
  }
  ADD_FAILURE() << "no finding " << name;
  return {};
}

TEST(Doctor, FindsNothingWrongWithAGoodMachine) {
  for (const Finding& finding : Diagnose(GoodMachine())) {
    EXPECT_EQ(finding.level, FindingLevel::kOk) << finding.name << ": " << finding.seen;
    EXPECT_FALSE(finding.seen.empty()) << finding.name;
  }
  EXPECT_THAT(FindingsText(Diagnose(GoodMachine()), false), HasSubstr("Nothing here will hurt."));
}

// One thing wrong at a time: it is found at its level, and says why and how to mend it.
struct Fault {
  const char* name;
  FindingLevel level;
  const char* mend;
  void (*break_it)(MachineFacts*);
};

class DoctorFaults : public ::testing::TestWithParam<Fault> {};

TEST_P(DoctorFaults, AreFoundWithTheirMending) {
  MachineFacts facts = GoodMachine();
  GetParam().break_it(&facts);
  int hurting = 0;
  for (const Finding& finding : Diagnose(facts)) hurting += finding.level != FindingLevel::kOk;
  EXPECT_EQ(hurting, 1);
  const Finding finding = Find(facts, GetParam().name);
  EXPECT_EQ(finding.level, GetParam().level);
  EXPECT_FALSE(finding.why.empty());
  EXPECT_THAT(finding.mend, HasSubstr(GetParam().mend));
}

constexpr FindingLevel kWarn = FindingLevel::kWarn, kBad = FindingLevel::kBad;
INSTANTIATE_TEST_SUITE_P(
    All, DoctorFaults,
    ::testing::Values(Fault{"blas", kBad, "libopenblas0-pthread",
                            [](MachineFacts* f) { f->blas_library = "/usr/lib/x86_64-linux-gnu/blas/libblas.so.3.11.0"; }},
                      Fault{"blas", kWarn, "libopenblas0-pthread", [](MachineFacts* f) { f->blas_library.clear(); }},
                      Fault{"cores", kWarn, "at least 2 cores",
                            [](MachineFacts* f) {
                              f->cores = 1;
                              f->load_average = 0;
                            }},
                      Fault{"cores", kWarn, "CPU limit", [](MachineFacts* f) { f->cgroup_cpus = 1.5; }},
                      Fault{"threads", kWarn, "unset OMP_NUM_THREADS",
                            [](MachineFacts* f) { f->thread_variables["OMP_NUM_THREADS"] = "64"; }},
                      Fault{"threads", kWarn, "OMP_WAIT_POLICY=passive",
                            [](MachineFacts* f) { f->thread_variables["OMP_WAIT_POLICY"] = "active"; }},
                      Fault{"load", kWarn, "quiet", [](MachineFacts* f) { f->load_average = 6; }},
                      Fault{"memory", kWarn, "memory limit", [](MachineFacts* f) { f->memory_available_bytes = 3 * kGiB; }},
                      Fault{"memory", kBad, "memory limit", [](MachineFacts* f) { f->cgroup_memory_bytes = kGiB; }},
                      Fault{"locked-memory", kWarn, "ulimit -l", [](MachineFacts* f) { f->memlock_bytes = 8 * kMiB; }},
                      Fault{"memory-files", kBad, "memfd_create", [](MachineFacts* f) { f->memfd = false; }},
                      Fault{"memory-files", kWarn, "vm.overcommit_memory", [](MachineFacts* f) { f->overcommit = 2; }},
                      Fault{"huge-pages", kWarn, "echo madvise", [](MachineFacts* f) { f->huge_pages = "always"; }},
                      Fault{"idle-class", kWarn, "CAP_SYS_NICE", [](MachineFacts* f) { f->idle_class_left = false; }},
                      Fault{"idle-class", kWarn, "sched_setscheduler",
                            [](MachineFacts* f) { f->idle_class_left = f->idle_class_entered = false; }},
                      Fault{"open-files", kWarn, "ulimit -n", [](MachineFacts* f) { f->open_files = 256; }},
                      Fault{"kernel", kBad, "pidfd_open", [](MachineFacts* f) { f->pidfd = false; }},
                      Fault{"clock", kWarn, "clocksource", [](MachineFacts* f) { f->clock_source = "hpet"; }},
                      Fault{"worker", kBad, "./dev build", [](MachineFacts* f) { f->worker_binary = false; }}));

TEST(Doctor, SaysThatAGpuIsNotUsed) {
  MachineFacts facts = GoodMachine();
  facts.gpu_devices = {"/dev/nvidia0", "/dev/nvidia1"};
  EXPECT_THAT(Find(facts, "gpu").seen, HasSubstr("2 NVIDIA device(s), not used"));
}

TEST(Doctor, PrintsJsonWithTheWorstLevel) {
  MachineFacts facts = GoodMachine();
  facts.load_average = 6;
  auto json = nlohmann::json::parse(FindingsJson(facts, Diagnose(facts)));
  EXPECT_EQ(json["worst"], "warn");
  EXPECT_EQ(json["machine"]["cores"], 8);
  facts.pidfd = false;
  EXPECT_EQ(nlohmann::json::parse(FindingsJson(facts, Diagnose(facts)))["worst"], "bad");
}

TEST(Doctor, ColoursOnlyWhenAsked) {
  const auto findings = Diagnose(GoodMachine());
  EXPECT_THAT(FindingsText(findings, true), HasSubstr("\033[32mok"));
  EXPECT_THAT(FindingsText(findings, false), ::testing::Not(HasSubstr("\033[")));
}

TEST(Doctor, CollectsFactsOfThisMachine) {
  const MachineFacts facts = CollectFacts();
  EXPECT_GE(facts.cores, 1);
  EXPECT_GT(facts.memory_total_bytes, facts.memory_available_bytes);
  EXPECT_GT(facts.memory_available_bytes, 0);
  EXPECT_FALSE(facts.kernel.empty());
  EXPECT_TRUE(facts.memfd);
  EXPECT_TRUE(facts.pidfd);
  EXPECT_GE(facts.load_average, 0);
}

}  // namespace
}  // namespace tidepool::cli
