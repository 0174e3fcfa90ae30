#include "cli/verb.h"

namespace tidepool::cli {

void AddAllVerbs(VerbList* verbs) {
  AddDemoVerbs(verbs);
  AddNodeVerbs(verbs);
  AddTrainVerbs(verbs);
  AddModelVerbs(verbs);
  AddDataVerbs(verbs);
  AddProfileVerbs(verbs);
  AddStallVerbs(verbs);
  AddPlanVerbs(verbs);
  AddExperimentVerbs(verbs);
  AddBenchVerbs(verbs);
  AddEmulationBenchVerbs(verbs);
  AddToolVerbs(verbs);
}

}  // namespace tidepool::cli
