BEGIN TRANSACTION;
CREATE TABLE adapters (
            run_id TEXT NOT NULL REFERENCES runs,
            version INTEGER NOT NULL,
            record TEXT NOT NULL,
            PRIMARY KEY (run_id, version)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "adapters" VALUES('earlier-e22dadac',0,'{"version":0,"round":0,"sha256":"8c9bacd083cd48e0f76ff2f34ca919853465f521735bee2617114ba786a0613b","total_bytes":1648,"rank":4,"measurements":{},"weights":{},"state_sha256":"","is_refinement":false,"base_version":null}');
INSERT INTO "adapters" VALUES('earlier-e22dadac',1,'{"version":1,"round":1,"sha256":"da548300e499ba0d2623ae5e745b5564921762c5a309b2cb742623c5ae034e47","total_bytes":1680,"rank":4,"measurements":{"encoder.0.query":{"starts":4.0,"winning_start":0.0,"sweeps":44.0,"concentration":0.9908046448951893,"member":1.0,"kept_factor_mean":0.0},"encoder.1.dense":{"starts":4.0,"winning_start":0.0,"sweeps":22.0,"concentration":0.6295227879274513,"member":1.0,"kept_factor_mean":0.0}},"weights":{"w-0":0.5,"w-1":0.5},"state_sha256":"","is_refinement":false,"base_version":0}');
CREATE TABLE certificates (
            run_id TEXT NOT NULL REFERENCES runs,
            round INTEGER NOT NULL,
            certificate TEXT NOT NULL,
            PRIMARY KEY (run_id, round)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "certificates" VALUES('earlier-e22dadac',1,'{"method":"flora_na","overall":{"module":"","ideal_norm":54.71269757578635,"change_norm":89.67829001233522,"relative_error":0.6279521067884575,"factor_mean_error":0.7793553617000856,"lower_bound":0.3481059724598135,"relative_error_vs_change":0.3831133901646539,"factor_mean_error_vs_change":0.4754844701309443,"lower_bound_vs_change":0.21237934836735894,"gap_closed":0.4382218767385108,"rank":4,"effective_rank":10.958820561994608,"measurements":{"concentration":0.8101637164113202,"kept_factor_mean":0.0,"member":1.0,"starts":4.0,"sweeps":33.0,"winning_start":0.0},"spectrum":[],"is_estimate":false},"modules":[{"module":"encoder.0.query","ideal_norm":41.49580911458627,"change_norm":66.25723590599073,"relative_error":0.6655821701608535,"factor_mean_error":0.722102818798972,"lower_bound":0.4130560387854218,"relative_error_vs_change":0.41684308597258685,"factor_mean_error_vs_change":0.4522410317946507,"lower_bound_vs_change":0.25869015368202625,"gap_closed":0.22357187154782052,"rank":4,"effective_rank":6.336536746964554,"measurements":{"starts":4.0,"winning_start":0.0,"sweeps":44.0,"concentration":0.9908046448951893,"member":1.0,"kept_factor_mean":0.0},"spectrum":[27.165942047623595,17.221442791464174,15.005522966240058,12.976406074917323,11.535081534418232,9.306848787286121,7.955836337171067,3.288155809753773],"is_estimate":false},{"module":"encoder.1.dense","ideal_norm":35.65917977106704,"change_norm":60.4332225653605,"relative_error":0.5730704117091104,"factor_mean_error":0.8507645733392979,"lower_bound":0.23287786506932368,"relative_error_vs_change":0.3381454763646471,"factor_mean_error_vs_change":0.5020014749461706,"lower_bound_vs_change":0.13741172988463432,"gap_closed":0.5905158391756571,"rank":4,"effective_rank":4.6223841790063664,"measurements":{"starts":4.0,"winning_start":0.0,"sweeps":22.0,"concentration":0.6295227879274513,"member":1.0,"kept_factor_mean":0.0},"spectrum":[25.05842129922173,19.93220219232323,11.30817055507872,7.037394531875552,6.291372289328221,5.037115104476805,2.0016000453725793],"is_estimate":false}],"seconds":0.047571768998750485}');
CREATE TABLE events (
            run_id TEXT NOT NULL REFERENCES runs,
            sequence INTEGER NOT NULL,
            event TEXT NOT NULL,
            PRIMARY KEY (run_id, sequence)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "events" VALUES('earlier-e22dadac',1,'{"sequence":1,"type":"run_created","time":1795405344.7634099,"round":0,"worker":"","detail":{"name":"earlier"}}');
INSERT INTO "events" VALUES('earlier-e22dadac',2,'{"sequence":2,"type":"run_started","time":1795405344.7670333,"round":0,"worker":"","detail":{}}');
INSERT INTO "events" VALUES('earlier-e22dadac',3,'{"sequence":3,"type":"worker_registered","time":1795405344.7932127,"round":0,"worker":"w-0","detail":{"device":"","rank":4,"replaced_session":false,"data_slot":0}}');
INSERT INTO "events" VALUES('earlier-e22dadac',4,'{"sequence":4,"type":"worker_ready","time":1795405344.8110044,"round":0,"worker":"w-0","detail":{"fixed_layout":true,"num_modules":2}}');
INSERT INTO "events" VALUES('earlier-e22dadac',5,'{"sequence":5,"type":"worker_registered","time":1795405344.8288758,"round":0,"worker":"w-1","detail":{"device":"","rank":4,"replaced_session":false,"data_slot":1}}');
INSERT INTO "events" VALUES('earlier-e22dadac',6,'{"sequence":6,"type":"worker_ready","time":1795405344.8428872,"round":0,"worker":"w-1","detail":{"num_modules":2}}');
INSERT INTO "events" VALUES('earlier-e22dadac',7,'{"sequence":7,"type":"update_committed","time":1795405344.9087813,"round":0,"worker":"w-0","detail":{"num_examples":10,"total_bytes":1648,"sha256":"8c9bacd083cd48e0f76ff2f34ca919853465f521735bee2617114ba786a0613b","rank":4,"metrics":{}}}');
INSERT INTO "events" VALUES('earlier-e22dadac',8,'{"sequence":8,"type":"adapter_published","time":1795405344.9087813,"round":0,"worker":"","detail":{"adapter_version":0,"sha256":"8c9bacd083cd48e0f76ff2f34ca919853465f521735bee2617114ba786a0613b","total_bytes":1648,"rank":4}}');
INSERT INTO "events" VALUES('earlier-e22dadac',9,'{"sequence":9,"type":"round_started","time":1795405344.9087813,"round":1,"worker":"","detail":{"cohort":["w-0","w-1"],"base_version":0}}');
INSERT INTO "events" VALUES('earlier-e22dadac',10,'{"sequence":10,"type":"update_committed","time":1795405344.924273,"round":1,"worker":"w-0","detail":{"num_examples":10,"total_bytes":1648,"sha256":"2de164f2f662c92f88d6a4d07350032467f18ab588c928816822f9c183e7cbae","rank":4,"metrics":{}}}');
INSERT INTO "events" VALUES('earlier-e22dadac',11,'{"sequence":11,"type":"update_committed","time":1795405344.9912324,"round":1,"worker":"w-1","detail":{"num_examples":10,"total_bytes":1648,"sha256":"ca6dfbe33d41b771563eee81d8b9ad7964cce61465c156bf608e90d4b8632e5c","rank":4,"metrics":{}}}');
INSERT INTO "events" VALUES('earlier-e22dadac',12,'{"sequence":12,"type":"round_closed","time":1795405344.9912324,"round":1,"worker":"","detail":{"updates":["w-0","w-1"],"missing":[]}}');
INSERT INTO "events" VALUES('earlier-e22dadac',13,'{"sequence":13,"type":"adapter_published","time":1795405345.4542212,"round":1,"worker":"","detail":{"adapter_version":1,"sha256":"da548300e499ba0d2623ae5e745b5564921762c5a309b2cb742623c5ae034e47","total_bytes":1680,"rank":4}}');
INSERT INTO "events" VALUES('earlier-e22dadac',14,'{"sequence":14,"type":"round_completed","time":1795405345.4542212,"round":1,"worker":"","detail":{}}');
INSERT INTO "events" VALUES('earlier-e22dadac',15,'{"sequence":15,"type":"round_started","time":1795405345.4542212,"round":2,"worker":"","detail":{"cohort":["w-0","w-1"],"base_version":1}}');
INSERT INTO "events" VALUES('earlier-e22dadac',16,'{"sequence":16,"type":"certificate_ready","time":1795405345.5197184,"round":1,"worker":"","detail":{"relative_error":0.6279521067884575,"factor_mean_error":0.7793553617000856,"lower_bound":0.3481059724598135,"relative_error_vs_change":0.3831133901646539,"factor_mean_error_vs_change":0.4754844701309443,"lower_bound_vs_change":0.21237934836735894,"seconds":0.047571768998750485}}');
INSERT INTO "events" VALUES('earlier-e22dadac',17,'{"sequence":17,"type":"update_committed","time":1795405345.5837483,"round":2,"worker":"w-0","detail":{"num_examples":10,"total_bytes":1648,"sha256":"b40a59ccd92f582eebc33388e817e679acf487ad47b764b846f65cbd77a90c69","rank":4,"metrics":{}}}');
CREATE TABLE owner (epoch INTEGER NOT NULL) STRICT;
INSERT INTO "owner" VALUES(1);
CREATE TABLE reports (
            run_id TEXT NOT NULL REFERENCES runs,
            round INTEGER NOT NULL,
            report TEXT NOT NULL,
            PRIMARY KEY (run_id, round)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "reports" VALUES('earlier-e22dadac',1,'{"round":1,"method":"flora_na","base_version":0,"adapter_version":1,"adapter_sha256":"da548300e499ba0d2623ae5e745b5564921762c5a309b2cb742623c5ae034e47","cohort":["w-0","w-1"],"updates":[{"worker":"w-0","num_examples":10,"weight":0.5,"total_bytes":1648,"sha256":"2de164f2f662c92f88d6a4d07350032467f18ab588c928816822f9c183e7cbae","rank":4,"metrics":{},"evaluations":[],"elapsed_seconds":0.016740214996389113,"staleness":0},{"worker":"w-1","num_examples":10,"weight":0.5,"total_bytes":1648,"sha256":"ca6dfbe33d41b771563eee81d8b9ad7964cce61465c156bf608e90d4b8632e5c","rank":4,"metrics":{},"evaluations":[],"elapsed_seconds":0.07707358499465045,"staleness":0}],"evaluations":[],"certificate":null,"phase_seconds":{"training":0.07707358499465045,"aggregating":0.4706432140083052},"bytes_up":3296,"bytes_down":0,"metrics":{}}');
CREATE TABLE runs (
            run_id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            created_at REAL NOT NULL,
            clock REAL NOT NULL,
            state TEXT NOT NULL
        ) STRICT
        ;
INSERT INTO "runs" VALUES('earlier-e22dadac','earlier',1.79540534476333975789e+09,8.10701308000716380774e-01,'{"run_id":"earlier-e22dadac","spec":{"name":"earlier","adapter":{"base_model":{"model_id":"test-model","revision":"","fingerprint":""},"task_type":"sequence_classification","kind":"lora","r":4,"lora_alpha":8.0,"use_rslora":false,"lora_dropout":0.0,"target_modules":["query","dense"],"modules_to_save":["classifier"],"labels":["a","b","c"]},"method":{"name":"flora_na","options":{},"weighting":null,"compression":null,"server_optimizer":null},"rounds":{"num_rounds":3,"engine":"sync","min_workers":2,"cohort_size":0,"sampling":"uniform","sampling_candidates":0,"over_selection":0.0,"quorum":2,"deadline_seconds":60.0,"below_quorum":"extend","max_extensions":0,"late_updates":"drop","max_staleness":4,"staleness_exponent":0.5,"buffer_size":0,"concurrency":0,"mixing":0.6,"evaluate":false,"evaluate_every":1},"training":{"learning_rate":0.001,"head_learning_rate":0.0,"schedule":"linear","local_epochs":1.0,"local_steps":0,"batch_size":16,"micro_batch_size":0,"max_sequence_tokens":512,"weight_decay":0.0,"warmup_fraction":0.0,"max_gradient_norm":1.0,"gradient_checkpointing":false,"packing":false,"logit_adjustment":0.0},"partition":{"scheme":"dirichlet","num_slots":2,"dirichlet_alpha":0.3,"column":"","seed":0},"seed":7,"wire_dtype":"f32"},"created_at":1795405344.7633398,"phase":"training","reason":"","plans":[{"trained":["a","b"],"private":[],"published":["a","b"],"selection":"all","may_lower_rank":false,"personal_stage":false,"refined":[],"required_metrics":[],"settings":{}}],"round":2,"version":1,"adapter":{"version":1,"round":1,"sha256":"da548300e499ba0d2623ae5e745b5564921762c5a309b2cb742623c5ae034e47","total_bytes":1680,"rank":4,"measurements":{"encoder.0.query":{"starts":4.0,"winning_start":0.0,"sweeps":44.0,"concentration":0.9908046448951893,"member":1.0,"kept_factor_mean":0.0},"encoder.1.dense":{"starts":4.0,"winning_start":0.0,"sweeps":22.0,"concentration":0.6295227879274513,"member":1.0,"kept_factor_mean":0.0}},"weights":{"w-0":0.5,"w-1":0.5},"state_sha256":"","is_refinement":false,"base_version":0},"cohort":["w-0","w-1"],"refiner":"","refinement":null,"evaluators":[],"phase_started":0.6903563600062625,"deadline":60.69035636000626,"extensions":0,"phase_seconds":{},"last_sequence":17}');
CREATE TABLE state_entries (
            run_id TEXT NOT NULL REFERENCES runs,
            field TEXT NOT NULL,
            key TEXT NOT NULL,
            record TEXT NOT NULL,
            PRIMARY KEY (run_id, field, key)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "state_entries" VALUES('earlier-e22dadac','assigned','w-1','{"round":2,"base_version":1,"started":0.6903563600062625}');
INSERT INTO "state_entries" VALUES('earlier-e22dadac','layout','','{"modules":[{"path":"encoder.0.query","in_features":12,"out_features":20},{"path":"encoder.1.dense","in_features":20,"out_features":7}],"saved_tensors":[{"name":"base_model.model.classifier.bias","shape":[3],"dtype":"f32"},{"name":"base_model.model.classifier.weight","shape":[3,7],"dtype":"f32"}],"base_fingerprint":"sha256:base"}');
INSERT INTO "state_entries" VALUES('earlier-e22dadac','updates','w-0','{"update_id":"fed64dc123f93332af84f7363f6ea40e","round":2,"worker":"w-0","idempotency_key":"earlier-e22dadac/2/train/w-0.b40a59ccd92f582e","sha256":"b40a59ccd92f582eebc33388e817e679acf487ad47b764b846f65cbd77a90c69","total_bytes":1648,"base_version":1,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.12034494799445383,"given_rank":4,"is_refinement":false,"staleness":0}');
INSERT INTO "state_entries" VALUES('earlier-e22dadac','workers','w-0','{"name":"w-0","state":"ready","epoch":1,"session_hash":"542c28c12cc390e66d47a535a6bbae34352b8928f0b2bc73fb1cdd481c49d8f3","instance_id":"instance-1","capabilities":{"device_type":"cpu","device_name":"","device_uuid":"","device_memory_bytes":0,"max_rank":0,"wire_dtypes":[],"versions":{},"features":[],"role":"party"},"rank":4,"slot":0,"confirmed":true,"num_updates":2,"num_tasks":2,"num_examples":10,"loss":null}');
INSERT INTO "state_entries" VALUES('earlier-e22dadac','workers','w-1','{"name":"w-1","state":"ready","epoch":1,"session_hash":"6c7c7aded04fc5fe1e681dba93c6b24fc49694f241e6443d6e3e956ec9e78a7d","instance_id":"instance-1","capabilities":{"device_type":"cpu","device_name":"","device_uuid":"","device_memory_bytes":0,"max_rank":0,"wire_dtypes":[],"versions":{},"features":[],"role":"party"},"rank":4,"slot":1,"confirmed":true,"num_updates":1,"num_tasks":2,"num_examples":10,"loss":null}');
CREATE TABLE updates (
            update_id TEXT PRIMARY KEY,
            run_id TEXT NOT NULL REFERENCES runs,
            round INTEGER NOT NULL,
            worker TEXT NOT NULL,
            idempotency_key TEXT NOT NULL,
            record TEXT NOT NULL,
            UNIQUE (run_id, round, worker),
            UNIQUE (run_id, idempotency_key)
        ) STRICT
        ;
INSERT INTO "updates" VALUES('c369eaeb2add5a06fc1b24c47954b396','earlier-e22dadac',0,'w-0','earlier-e22dadac/0/initialize/w-0.8c9bacd083cd48e0','{"update_id":"c369eaeb2add5a06fc1b24c47954b396","round":0,"worker":"w-0","idempotency_key":"earlier-e22dadac/0/initialize/w-0.8c9bacd083cd48e0","sha256":"8c9bacd083cd48e0f76ff2f34ca919853465f521735bee2617114ba786a0613b","total_bytes":1648,"base_version":0,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.06331234300159849,"given_rank":4,"is_refinement":false,"staleness":0}');
INSERT INTO "updates" VALUES('0204df6164d5a100854ef4f1e57db812','earlier-e22dadac',1,'w-0','earlier-e22dadac/1/train/w-0.2de164f2f662c92f','{"update_id":"0204df6164d5a100854ef4f1e57db812","round":1,"worker":"w-0","idempotency_key":"earlier-e22dadac/1/train/w-0.2de164f2f662c92f","sha256":"2de164f2f662c92f88d6a4d07350032467f18ab588c928816822f9c183e7cbae","total_bytes":1648,"base_version":0,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.016740214996389113,"given_rank":4,"is_refinement":false,"staleness":0}');
INSERT INTO "updates" VALUES('41ddc55d5ac9ee8abb087e133878e7c7','earlier-e22dadac',1,'w-1','earlier-e22dadac/1/train/w-1.ca6dfbe33d41b771','{"update_id":"41ddc55d5ac9ee8abb087e133878e7c7","round":1,"worker":"w-1","idempotency_key":"earlier-e22dadac/1/train/w-1.ca6dfbe33d41b771","sha256":"ca6dfbe33d41b771563eee81d8b9ad7964cce61465c156bf608e90d4b8632e5c","total_bytes":1648,"base_version":0,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.07707358499465045,"given_rank":4,"is_refinement":false,"staleness":0}');
INSERT INTO "updates" VALUES('fed64dc123f93332af84f7363f6ea40e','earlier-e22dadac',2,'w-0','earlier-e22dadac/2/train/w-0.b40a59ccd92f582e','{"update_id":"fed64dc123f93332af84f7363f6ea40e","round":2,"worker":"w-0","idempotency_key":"earlier-e22dadac/2/train/w-0.b40a59ccd92f582e","sha256":"b40a59ccd92f582eebc33388e817e679acf487ad47b764b846f65cbd77a90c69","total_bytes":1648,"base_version":1,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.12034494799445383,"given_rank":4,"is_refinement":false,"staleness":0}');
PRAGMA user_version = 2;
COMMIT;
