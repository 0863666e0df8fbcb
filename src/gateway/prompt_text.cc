#include "gateway/prompt_text.h"

#include <utility>

namespace sluice::gateway {

std::string& PromptText::own() {
  if (own_ == nullptr) own_ = std::make_shared<std::string>(std::exchange(piece_, {}));
  return *own_;
}

void PromptText::join(std::string_view piece, bool in_body) {
  if (piece.empty()) return;
  if (empty() && in_body) {
    own_ = nullptr;
    piece_ = piece;
    return;
  }
  if (own_ == nullptr) {
    own_ = std::make_shared<std::string>();
    own_->reserve(piece_.size() + 1 + piece.size());
    own_->append(std::exchange(piece_, {}));
  }
  if (!own_->empty()) own_->push_back(' ');
  own_->append(piece);
}

void PromptText::erase(size_t begin, size_t size) {
  if (size == 0) return;
  if (begin + size == this->size() && own_ == nullptr) {
    piece_ = piece_.substr(0, begin);
  } else {
    own().erase(begin, size);
  }
}

}  // namespace sluice::gateway
