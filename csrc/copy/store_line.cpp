// The life of one stored block: enter (slot taken), copy, leave (sealed or given up).
// A failure becomes the block's status; it never stops the line.
#include "store_line.h"

namespace gft {

std::shared_ptr<StoreLine::Flight> StoreLine::enter(StoreItem item) {
  auto flight = std::make_shared<Flight>();
  flight->item = std::move(item);
  flights_.push_back(flight);
  if (flight->item.kind != StoreItem::Kind::block) return flight;
  const BlockSpec &block = flight->item.job->blocks[flight->item.index];
  try {
    writer_->check_current();
    auto parent = block.parent ? by_hash_.find(*block.parent) : by_hash_.end();
    if (by_hash_.contains(block.hash) || (parent != by_hash_.end() && parent->second->again)) {
      flight->again = true;
      by_hash_.try_emplace(block.hash, flight);
    } else if (parent != by_hash_.end()) {
      flight->parent = parent->second;
      flight->claimed = writer_->reserve(block.hash, block.position, ~uint64_t{0});
      by_hash_[block.hash] = flight;
    } else {
      flight->claimed = writer_->claim(block.hash, block.parent_or_null(), block.position);
      if (flight->claimed)
        by_hash_[block.hash] = flight;
      else
        flight->status = GFT_PRESENT;
    }
  } catch (...) {
    Fail why = current_failure();
    flight->status = why.code;
    flight->detail = why.text;
  }
  return flight;
}

void StoreLine::copy(std::span<const std::shared_ptr<Flight>> flights) const {
  std::vector<Move> moves;
  std::vector<Flight *> moved;
  for (const auto &flight : flights) {
    if (!flight->claimed || flight->status != GFT_OK) continue;
    try {
      writer_->core().check_alive();
      Move move;
      move.block_id = flight->item.job->blocks[flight->item.index].block_id;
      move.slot = flight->claimed->slot;
      move.job = flight->item.job.get();
      moves.push_back(std::move(move));
      moved.push_back(flight.get());
    } catch (...) {
      Fail why = current_failure();
      flight->status = why.code;
      flight->detail = why.text;
    }
  }
  if (moves.empty()) return;
  mover_.out(moves);
  for (size_t i = 0; i < moves.size(); ++i) {
    moved[i]->status = moves[i].status;
    moved[i]->detail = std::move(moves[i].detail);
    moved[i]->digest = moves[i].digest;
    moved[i]->held = moves[i].held;
  }
}

void StoreLine::leave(Flight &flight, const Done &done) {
  flight.arrived = true;
  while (!flights_.empty() && flights_.front()->arrived) {
    auto head = flights_.front();
    flights_.pop_front();
    try {
      finish(*head);
    } catch (...) {
      Fail why = current_failure();
      head->status = why.code;
      head->detail = why.text;
    }
    if (head->item.kind == StoreItem::Kind::block) {
      auto named = by_hash_.find(head->item.job->blocks[head->item.index].hash);
      if (named != by_hash_.end() && named->second == head) by_hash_.erase(named);
    }
    head->parent.reset();
    done(*head);
  }
}

void StoreLine::finish(Flight &flight) {
  if (flight.item.kind != StoreItem::Kind::block) {
    std::vector<std::string_view> hashes(flight.item.hashes.begin(), flight.item.hashes.end());
    if (flight.item.kind == StoreItem::Kind::mark)
      writer_->mark(hashes, flight.item.mark);
    else if (writer_->pin(hashes, flight.item.pinned_until) == 0 && flight.item.pinned_until != 0)
      flight.status = GFT_NOT_FOUND;
    return;
  }
  if (flight.again && flight.status == GFT_OK) {
    const BlockSpec &block = flight.item.job->blocks[flight.item.index];
    flight.claimed = writer_->claim(block.hash, block.parent_or_null(), block.position);
    if (!flight.claimed) {
      flight.status = GFT_PRESENT;
      return;
    }
    std::shared_ptr<Flight> alone(&flight, [](Flight *) {});
    copy({&alone, 1});
  }
  if (!flight.claimed) return;
  if (flight.status == GFT_OK && flight.item.job->given_up) {
    // The engine was told that this block is lost, and may have used its memory for another since.
    flight.status = GFT_DEVICE;
    flight.detail = "the copy arrived after its job had been given up";
  }
  if (flight.parent) {
    if (flight.parent->status == GFT_OK) {
      flight.claimed->parent_link = flight.parent->link;
    } else if (flight.status == GFT_OK) {
      flight.status = GFT_NO_PARENT;
      flight.detail = "the parent block was not sealed: " + flight.parent->detail;
    }
  }
  if (flight.status == GFT_OK)
    flight.link = writer_->publish(*flight.claimed, flight.digest);
  else if (flight.held)
    holds_slots_ = true;  // stays WRITING, in a lane that stays locked
  else
    writer_->give_up(*flight.claimed);
}

}  // namespace gft
