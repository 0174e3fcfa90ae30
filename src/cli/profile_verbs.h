// What the verbs of profile bundles share.
#pragma once

#include <string>

#include "cli/verb.h"
#include "profile/bundle.h"
#include "profile/open.h"

namespace tidepool::cli {

// Where bundles are.
class BundleVerb : public Verb {
 public:
  void Register(OptionTable* table) override {
    table->Add({.key = "profile.directory", .flag = "profiles", .help = "Directory of profile bundles", .metavar = "DIR"},
               &directory_);
  }

 protected:
  StatusOr<profile::Bundle> Load(const std::string& name) const {
    TIDEPOOL_ASSIGN_OR_RETURN(const profile::BundlePlace place, profile::FindBundle(name, directory_));
    return profile::LoadBundle(place);
  }

  std::string directory_ = profile::kDefaultDirectory;
};

// Verbs that make a bundle: profile, profile import, profile copy.
void AddProfileMakingVerbs(VerbList* verbs);

}  // namespace tidepool::cli
