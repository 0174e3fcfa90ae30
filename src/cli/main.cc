#include "cli/command_line.h"
#include "cli/stop_signal.h"
#include "cli/verb.h"

int main(int argc, char** argv) {
  tidepool::cli::InstallStopSignals();
  tidepool::cli::VerbList verbs;
  tidepool::cli::AddAllVerbs(&verbs);
  return tidepool::cli::RunCommandLine(std::vector<std::string>(argv + 1, argv + argc), verbs);
}
