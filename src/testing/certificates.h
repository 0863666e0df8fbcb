// Certificates for tests, made when the test runs: an authority, and what it signs. The keys are of P-256: quick to
// make.
#pragma once

#include <string>

namespace sluice::testing {

// A folder of PEM files that goes away with it.
class CertificateFolder {
 public:
  CertificateFolder();
  ~CertificateFolder();

  std::string path(const std::string& name) const { return folder_ + "/" + name; }

  // Makes NAME.pem and NAME.key: an authority.
  void make_authority(const std::string& name);
  // Makes NAME.pem and NAME.key, signed by the authority, for `host` (a name or an address). `days` of validity, which
  // begin two days ago if they are negative and have then ended yesterday. Replaces what is there by renaming.
  void make(const std::string& name, const std::string& authority, const std::string& host, int days = 1);
  void write(const std::string& name, const std::string& text);

 private:
  std::string folder_;
};

}  // namespace sluice::testing
