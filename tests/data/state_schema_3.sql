BEGIN TRANSACTION;
CREATE TABLE adapters (
            run_id TEXT NOT NULL REFERENCES runs,
            version INTEGER NOT NULL,
            record TEXT NOT NULL,
            PRIMARY KEY (run_id, version)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "adapters" VALUES('earlier-eeab96e5',0,'{"version":0,"round":0,"digest":"5be3c857694496a7d7665c4ce04d71e37591107441187b199352d52c9c1d0274","total_bytes":1648,"rank":4,"measurements":{},"weights":{},"state_digest":"","is_refinement":false,"base_version":null}');
INSERT INTO "adapters" VALUES('earlier-eeab96e5',1,'{"version":1,"round":1,"digest":"3162134bcec6690bb84467f28c4cdb7404b7697fc18362dc392e259663f7b149","total_bytes":1680,"rank":4,"measurements":{"encoder.0.query":{"starts":4.0,"winning_start":0.0,"sweeps":44.0,"concentration":0.9908046448951893,"member":1.0,"kept_factor_mean":0.0},"encoder.1.dense":{"starts":4.0,"winning_start":0.0,"sweeps":22.0,"concentration":0.6295227879274513,"member":1.0,"kept_factor_mean":0.0}},"weights":{"w-0":0.5,"w-1":0.5},"state_digest":"","is_refinement":false,"base_version":0}');
CREATE TABLE certificates (
            run_id TEXT NOT NULL REFERENCES runs,
            round INTEGER NOT NULL,
            certificate TEXT NOT NULL,
            PRIMARY KEY (run_id, round)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "certificates" VALUES('earlier-eeab96e5',1,'{"method":"flora_na","overall":{"module":"","ideal_norm":54.71269757578635,"change_norm":89.67829001233522,"relative_error":0.6279521067884575,"factor_mean_error":0.7793553617000856,"lower_bound":0.3481059724598135,"relative_error_vs_change":0.3831133901646539,"factor_mean_error_vs_change":0.4754844701309443,"lower_bound_vs_change":0.21237934836735894,"gap_closed":0.4382218767385108,"rank":4,"effective_rank":10.958820561994608,"measurements":{"concentration":0.8101637164113202,"direction_change_a":0.9414448025680191,"direction_change_b":1.0134392109436026,"kept_factor_mean":0.0,"magnitude_change_a":0.5498624133751708,"magnitude_change_b":1.2721211547648,"member":1.0,"starts":4.0,"sweeps":33.0,"winning_start":0.0},"spectrum":[],"is_estimate":false},"modules":[{"module":"encoder.0.query","ideal_norm":41.49580911458627,"change_norm":66.25723590599073,"relative_error":0.6655821701608535,"factor_mean_error":0.722102818798972,"lower_bound":0.4130560387854218,"relative_error_vs_change":0.41684308597258685,"factor_mean_error_vs_change":0.4522410317946507,"lower_bound_vs_change":0.25869015368202625,"gap_closed":0.22357187154782052,"rank":4,"effective_rank":6.336536746964554,"measurements":{"starts":4.0,"winning_start":0.0,"sweeps":44.0,"concentration":0.9908046448951893,"member":1.0,"kept_factor_mean":0.0,"magnitude_change_a":0.3826442850298329,"direction_change_a":0.9941770888488927,"magnitude_change_b":1.1913238352274245,"direction_change_b":1.0197665061552137},"spectrum":[27.165942047623595,17.221442791464174,15.005522966240058,12.976406074917323,11.535081534418232,9.306848787286121,7.955836337171067,3.288155809753773],"is_estimate":false},{"module":"encoder.1.dense","ideal_norm":35.65917977106704,"change_norm":60.4332225653605,"relative_error":0.5730704117091104,"factor_mean_error":0.8507645733392979,"lower_bound":0.23287786506932368,"relative_error_vs_change":0.3381454763646471,"factor_mean_error_vs_change":0.5020014749461706,"lower_bound_vs_change":0.13741172988463432,"gap_closed":0.5905158391756571,"rank":4,"effective_rank":4.6223841790063664,"measurements":{"starts":4.0,"winning_start":0.0,"sweeps":22.0,"concentration":0.6295227879274513,"member":1.0,"kept_factor_mean":0.0,"magnitude_change_a":0.7170805417205088,"direction_change_a":0.8887125162871456,"magnitude_change_b":1.3529184743021752,"direction_change_b":1.0071119157319912},"spectrum":[25.05842129922173,19.93220219232323,11.30817055507872,7.037394531875552,6.291372289328221,5.037115104476805,2.0016000453725793],"is_estimate":false}],"seconds":0.07798869999533053}');
CREATE TABLE events (
            run_id TEXT NOT NULL REFERENCES runs,
            sequence INTEGER NOT NULL,
            event TEXT NOT NULL,
            PRIMARY KEY (run_id, sequence)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "events" VALUES('earlier-eeab96e5',1,'{"sequence":1,"type":"run_created","time":1795405364.7295363,"round":0,"worker":"","detail":{"name":"earlier"}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',2,'{"sequence":2,"type":"run_started","time":1795405364.74811,"round":0,"worker":"","detail":{}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',3,'{"sequence":3,"type":"worker_registered","time":1795405364.8081706,"round":0,"worker":"w-0","detail":{"device":"","rank":4,"replaced_session":false,"data_slot":0}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',4,'{"sequence":4,"type":"worker_ready","time":1795405364.8387303,"round":0,"worker":"w-0","detail":{"fixed_layout":true,"num_modules":2}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',5,'{"sequence":5,"type":"worker_registered","time":1795405364.8448846,"round":0,"worker":"w-1","detail":{"device":"","rank":4,"replaced_session":false,"data_slot":1}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',6,'{"sequence":6,"type":"worker_ready","time":1795405364.8497229,"round":0,"worker":"w-1","detail":{"num_modules":2}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',7,'{"sequence":7,"type":"update_committed","time":1795405364.9084706,"round":0,"worker":"w-0","detail":{"num_examples":10,"total_bytes":1648,"digest":"5be3c857694496a7d7665c4ce04d71e37591107441187b199352d52c9c1d0274","rank":4,"metrics":{}}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',8,'{"sequence":8,"type":"adapter_published","time":1795405364.9084706,"round":0,"worker":"","detail":{"adapter_version":0,"digest":"5be3c857694496a7d7665c4ce04d71e37591107441187b199352d52c9c1d0274","total_bytes":1648,"rank":4}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',9,'{"sequence":9,"type":"round_started","time":1795405364.9084706,"round":1,"worker":"","detail":{"cohort":["w-0","w-1"],"base_version":0}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',10,'{"sequence":10,"type":"update_committed","time":1795405364.9340808,"round":1,"worker":"w-0","detail":{"num_examples":10,"total_bytes":1648,"digest":"345b318e95561ed811b82d53aab6d9d44933e966ecc4971d607b3cf287137c84","rank":4,"metrics":{}}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',11,'{"sequence":11,"type":"update_committed","time":1795405364.9658008,"round":1,"worker":"w-1","detail":{"num_examples":10,"total_bytes":1648,"digest":"a8de21ac156125b85b8a58e018c60a6d4d7d6528fae7e87ee5981231bc2c3c96","rank":4,"metrics":{}}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',12,'{"sequence":12,"type":"round_closed","time":1795405364.9658008,"round":1,"worker":"","detail":{"updates":["w-0","w-1"],"missing":[]}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',13,'{"sequence":13,"type":"adapter_published","time":1795405365.7648547,"round":1,"worker":"","detail":{"adapter_version":1,"digest":"3162134bcec6690bb84467f28c4cdb7404b7697fc18362dc392e259663f7b149","total_bytes":1680,"rank":4}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',14,'{"sequence":14,"type":"round_completed","time":1795405365.7648547,"round":1,"worker":"","detail":{}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',15,'{"sequence":15,"type":"round_started","time":1795405365.7648547,"round":2,"worker":"","detail":{"cohort":["w-0","w-1"],"base_version":1}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',16,'{"sequence":16,"type":"certificate_ready","time":1795405365.869366,"round":1,"worker":"","detail":{"relative_error":0.6279521067884575,"factor_mean_error":0.7793553617000856,"lower_bound":0.3481059724598135,"relative_error_vs_change":0.3831133901646539,"factor_mean_error_vs_change":0.4754844701309443,"lower_bound_vs_change":0.21237934836735894,"seconds":0.07798869999533053}}');
INSERT INTO "events" VALUES('earlier-eeab96e5',17,'{"sequence":17,"type":"update_committed","time":1795405365.9691014,"round":2,"worker":"w-0","detail":{"num_examples":10,"total_bytes":1648,"digest":"980404a5ec60b8574cf97226a840be93c692c58695180cb2becf4c4bf9a3cd5d","rank":4,"metrics":{}}}');
CREATE TABLE owner (epoch INTEGER NOT NULL) STRICT;
INSERT INTO "owner" VALUES(1);
CREATE TABLE reports (
            run_id TEXT NOT NULL REFERENCES runs,
            round INTEGER NOT NULL,
            report TEXT NOT NULL,
            PRIMARY KEY (run_id, round)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "reports" VALUES('earlier-eeab96e5',1,'{"round":1,"method":"flora_na","base_version":0,"adapter_version":1,"adapter_digest":"3162134bcec6690bb84467f28c4cdb7404b7697fc18362dc392e259663f7b149","cohort":["w-0","w-1"],"updates":[{"worker":"w-0","num_examples":10,"weight":0.5,"total_bytes":1648,"digest":"345b318e95561ed811b82d53aab6d9d44933e966ecc4971d607b3cf287137c84","rank":4,"metrics":{},"evaluations":[],"elapsed_seconds":0.029962732005515136,"staleness":0},{"worker":"w-1","num_examples":10,"weight":0.5,"total_bytes":1648,"digest":"a8de21ac156125b85b8a58e018c60a6d4d7d6528fae7e87ee5981231bc2c3c96","rank":4,"metrics":{},"evaluations":[],"elapsed_seconds":0.05293712600541767,"staleness":0}],"evaluations":[],"certificate":null,"phase_seconds":{"training":0.05293712600541767,"aggregating":0.8085196719912346},"bytes_up":3296,"bytes_down":0,"metrics":{}}');
CREATE TABLE runs (
            run_id TEXT PRIMARY KEY,
            name TEXT NOT NULL UNIQUE,
            created_at REAL NOT NULL,
            clock REAL NOT NULL,
            state TEXT NOT NULL
        ) STRICT
        ;
INSERT INTO "runs" VALUES('earlier-eeab96e5','earlier',1.79540536472942423816e+09,1.23819848900893703103e+00,'{"run_id":"earlier-eeab96e5","spec":{"name":"earlier","adapter":{"base_model":{"model_id":"test-model","revision":"","fingerprint":"","quantization":"none"},"task_type":"sequence_classification","kind":"lora","r":4,"lora_alpha":8.0,"use_rslora":false,"lora_dropout":0.0,"target_modules":["query","dense"],"modules_to_save":["classifier"],"labels":["a","b","c"]},"method":{"name":"flora_na","options":{},"gauge":"own","weighting":null,"compression":null,"server_optimizer":null},"rounds":{"num_rounds":3,"engine":"sync","min_workers":2,"cohort_size":0,"sampling":"uniform","sampling_candidates":0,"over_selection":0.0,"quorum":2,"deadline_seconds":60.0,"below_quorum":"extend","max_extensions":0,"late_updates":"drop","max_staleness":4,"staleness_exponent":0.5,"buffer_size":0,"concurrency":0,"mixing":0.6,"evaluate":false,"evaluate_every":1,"test_share":1.0,"certify_every":1,"best_by":"","early_stopping_rounds":0,"early_stopping_min_change":0.0,"final_version":"last"},"training":{"learning_rate":0.001,"head_learning_rate":0.0,"b_learning_rate_ratio":1.0,"schedule":"linear","local_epochs":1.0,"local_steps":0,"batch_size":16,"micro_batch_size":0,"max_sequence_tokens":512,"optimizer":"adamw","momentum":0.0,"weight_decay":0.0,"warmup_fraction":0.0,"max_gradient_norm":1.0,"gradient_checkpointing":false,"packing":false,"logit_adjustment":0.0},"partition":{"scheme":"dirichlet","num_slots":2,"dirichlet_alpha":0.3,"column":"","seed":0},"seed":7,"wire_dtype":"f32","codec":null,"plugins":[]},"created_at":1795405364.7294242,"phase":"training","reason":"","plans":[{"trained":["a","b"],"private":[],"published":["a","b"],"selection":"all","may_lower_rank":false,"personal_stage":false,"personal_unrefined":false,"refined":[],"required_metrics":[],"settings":{},"keeps_basis":true,"sent_extras":[],"given_extras":[]}],"round":2,"version":1,"adapter":{"version":1,"round":1,"digest":"3162134bcec6690bb84467f28c4cdb7404b7697fc18362dc392e259663f7b149","total_bytes":1680,"rank":4,"measurements":{"encoder.0.query":{"starts":4.0,"winning_start":0.0,"sweeps":44.0,"concentration":0.9908046448951893,"member":1.0,"kept_factor_mean":0.0},"encoder.1.dense":{"starts":4.0,"winning_start":0.0,"sweeps":22.0,"concentration":0.6295227879274513,"member":1.0,"kept_factor_mean":0.0}},"weights":{"w-0":0.5,"w-1":0.5},"state_digest":"","is_refinement":false,"base_version":0},"cohort":["w-0","w-1"],"refiner":"","refinement":null,"evaluators":[],"phase_started":1.0347150070010684,"deadline":61.03471500700107,"extensions":0,"phase_seconds":{},"last_sequence":17,"best":null,"last_gain":null}');
CREATE TABLE state_entries (
            run_id TEXT NOT NULL REFERENCES runs,
            field TEXT NOT NULL,
            key TEXT NOT NULL,
            record TEXT NOT NULL,
            PRIMARY KEY (run_id, field, key)
        ) STRICT, WITHOUT ROWID
        ;
INSERT INTO "state_entries" VALUES('earlier-eeab96e5','assigned','w-1','{"round":2,"base_version":1,"started":1.0347150070010684}');
INSERT INTO "state_entries" VALUES('earlier-eeab96e5','layout','','{"modules":[{"path":"encoder.0.query","in_features":12,"out_features":20},{"path":"encoder.1.dense","in_features":20,"out_features":7}],"saved_tensors":[{"name":"base_model.model.classifier.bias","shape":[3],"dtype":"f32"},{"name":"base_model.model.classifier.weight","shape":[3,7],"dtype":"f32"}],"base_fingerprint":"sha256:base"}');
INSERT INTO "state_entries" VALUES('earlier-eeab96e5','updates','w-0','{"update_id":"2169c7d92a761022cc97e44711f3b110","round":2,"worker":"w-0","idempotency_key":"earlier-eeab96e5/2/train/w-0.980404a5ec60b857","digest":"980404a5ec60b8574cf97226a840be93c692c58695180cb2becf4c4bf9a3cd5d","total_bytes":1648,"base_version":1,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.2034834820078686,"given_rank":4,"is_refinement":false,"staleness":0}');
INSERT INTO "state_entries" VALUES('earlier-eeab96e5','workers','w-0','{"name":"w-0","state":"ready","epoch":1,"session_hash":"d99b6a212202a3456661387d96daf97b68562dee333957413e8511e2d59685e8","instance_id":"instance-1","capabilities":{"device_type":"cpu","device_name":"","device_uuid":"","device_memory_bytes":0,"max_rank":0,"wire_dtypes":[],"versions":{},"features":[],"role":"party","codecs":["bf16","f16","int8","nf4","top_k"],"plugins":["fedprox","ditto","fednova","scaffold","clip"]},"rank":4,"slot":0,"confirmed":true,"num_updates":2,"num_tasks":2,"num_examples":10,"loss":null}');
INSERT INTO "state_entries" VALUES('earlier-eeab96e5','workers','w-1','{"name":"w-1","state":"ready","epoch":1,"session_hash":"311c9cc1656e47ed0eec5ac1f7e0cfa990c73ef0fa1f6a09797177c703921e4c","instance_id":"instance-1","capabilities":{"device_type":"cpu","device_name":"","device_uuid":"","device_memory_bytes":0,"max_rank":0,"wire_dtypes":[],"versions":{},"features":[],"role":"party","codecs":["bf16","f16","int8","nf4","top_k"],"plugins":["fedprox","ditto","fednova","scaffold","clip"]},"rank":4,"slot":1,"confirmed":true,"num_updates":1,"num_tasks":2,"num_examples":10,"loss":null}');
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
INSERT INTO "updates" VALUES('45c6283f84001732af5e34118a0a99d2','earlier-eeab96e5',0,'w-0','earlier-eeab96e5/0/initialize/w-0.5be3c857694496a7','{"update_id":"45c6283f84001732af5e34118a0a99d2","round":0,"worker":"w-0","idempotency_key":"earlier-eeab96e5/0/initialize/w-0.5be3c857694496a7","digest":"5be3c857694496a7d7665c4ce04d71e37591107441187b199352d52c9c1d0274","total_bytes":1648,"base_version":0,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.05323522099934053,"given_rank":4,"is_refinement":false,"staleness":0}');
INSERT INTO "updates" VALUES('e5e37215856b0c506a0941fff42a14d1','earlier-eeab96e5',1,'w-0','earlier-eeab96e5/1/train/w-0.345b318e95561ed8','{"update_id":"e5e37215856b0c506a0941fff42a14d1","round":1,"worker":"w-0","idempotency_key":"earlier-eeab96e5/1/train/w-0.345b318e95561ed8","digest":"345b318e95561ed811b82d53aab6d9d44933e966ecc4971d607b3cf287137c84","total_bytes":1648,"base_version":0,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.029962732005515136,"given_rank":4,"is_refinement":false,"staleness":0}');
INSERT INTO "updates" VALUES('d88467ac01524cc9a39b593a14953bfc','earlier-eeab96e5',1,'w-1','earlier-eeab96e5/1/train/w-1.a8de21ac156125b8','{"update_id":"d88467ac01524cc9a39b593a14953bfc","round":1,"worker":"w-1","idempotency_key":"earlier-eeab96e5/1/train/w-1.a8de21ac156125b8","digest":"a8de21ac156125b85b8a58e018c60a6d4d7d6528fae7e87ee5981231bc2c3c96","total_bytes":1648,"base_version":0,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.05293712600541767,"given_rank":4,"is_refinement":false,"staleness":0}');
INSERT INTO "updates" VALUES('2169c7d92a761022cc97e44711f3b110','earlier-eeab96e5',2,'w-0','earlier-eeab96e5/2/train/w-0.980404a5ec60b857','{"update_id":"2169c7d92a761022cc97e44711f3b110","round":2,"worker":"w-0","idempotency_key":"earlier-eeab96e5/2/train/w-0.980404a5ec60b857","digest":"980404a5ec60b8574cf97226a840be93c692c58695180cb2becf4c4bf9a3cd5d","total_bytes":1648,"base_version":1,"rank":4,"num_examples":10,"metrics":{},"evaluations":[],"elapsed_seconds":0.2034834820078686,"given_rank":4,"is_refinement":false,"staleness":0}');
PRAGMA user_version = 3;
COMMIT;
